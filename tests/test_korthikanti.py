"""The activation formulas of Korthikanti et al. 2022 (arXiv:2205.05198), term by term, from the tape.

A layer of their GPT, s tokens × b sequences, h wide, a heads, in 16 bits, keeps s·b·h·(34 + 5·a·s/h) bytes for its backward pass (their
equation 1, section 4.1). They count attention, MLP and layer norms, and leave small buffers out; here those are the norms' means and
deviations, 16·s·b bytes in fp32, which are exact too. Then what transformers' own GPT-2 keeps, and each tensor by which it differs.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramplan.dim import Dim
from vramplan.families import walk
from vramplan.kernels import Kernels
from vramplan.methods import Full
from vramplan.ops import activation, add, attention, dropout, embed, layer_norm, linear
from vramplan.ops.loss import cross_entropy
from vramplan.runs import Checkpointing
from vramplan.sweep import sweep
from vramplan.tape import Tape
from vramplan.tensors import Tensor

SHAPES = given(b=st.integers(1, 8), s=st.integers(1, 512), a=st.integers(1, 16), d=st.integers(1, 128))


def blank(b: int, s: int, **kernels: str) -> Tape:
    """A tape of b sequences of s tokens in 16 bits, where everything trains."""
    tape = Tape(Dim(b, "b"), Dim(s, "s"), 0, 2, Kernels(logits="all", **kernels))  # type: ignore[arg-type]
    tape.method = Full()
    return tape


def megatron(t: Tape, x: Tensor, heads: int) -> Tensor:
    """Their figure 2: softmax with scale and mask is one kernel in 16 bits, GeLU another; dropout on the probabilities and both outputs."""
    h, t.attention_dropout = x.shape[-1], 0.1
    many = Dim(heads, "heads")
    width, ffn = many * Dim(int(h) // heads, "head_dim"), Dim(4 * int(h), "ffn")
    y = layer_norm(t, x, "norm_1")
    with t.module("attention", y):
        q, k, v = (linear(t, y, name, width, bias=True) for name in "qkv")
        y = attention(t, q, k, v, heads=many, kv_heads=many, past=False, upcast=False, name="core")
        y = dropout(t, linear(t, y, "out", h, bias=True), 0.1, "out_dropout")
    x = add(t, x, y)
    y = layer_norm(t, x, "norm_2")
    with t.module("mlp", y):
        y = activation(t, linear(t, y, "up", ffn, bias=True))
        y = dropout(t, linear(t, y, "down", h, bias=True), 0.1, "mlp_dropout")
    return add(t, x, y)


def layers(b: int, s: int, a: int, h: int, n: int = 2) -> Tape:
    """`n` such layers."""
    tape = blank(b, s, attention="eager")
    x, _ = embed(tape, "embedding", Dim(64, "vocab"), h)
    with tape.layers("layer", range(n), x) as x:
        megatron(tape, x, a)
    return tape


def kept(tape: Tape) -> dict[str, int]:
    """Bytes that one layer keeps, by tensor."""
    found: dict[str, int] = {}
    for tensor in tape.tensors:
        if tensor.repeats > 1 and tensor.saved == tensor.repeats:
            name = tensor.name.rpartition("{i}.")[2]
            found[name] = found.get(name, 0) + tensor.nbytes
    return found


def of(found: dict[str, int], *names: str) -> int:
    return sum(found[name] for name in names)


@SHAPES
def test_a_layer_keeps_34_sbh_and_5_as2b(b: int, s: int, a: int, d: int) -> None:
    """Section 4.1: attention 11 sbh + 5 as²b, MLP 19 sbh, the two norms 4 sbh."""
    h, found = a * d, kept(layers(b, s, a, a * d))
    sbh, core = s * b * h, ("attention.core.softmax", "attention.core.dropout", "core.dropout.mask")
    assert of(found, "layer.input", "residual") == 4 * sbh
    assert of(found, "norm_1.stats", "norm_2.stats") == 16 * s * b
    assert of(found, "norm_1", "attention.q", "attention.k", "attention.v", "attention.core", "out_dropout.mask") == 11 * sbh
    assert [found[name] for name in core] == [2 * a * s * s * b, 2 * a * s * s * b, a * s * s * b]
    assert of(found, "norm_2", "mlp.up", "mlp.act_fn", "mlp_dropout.mask") == 19 * sbh
    assert sum(found.values()) == sbh * 34 + 5 * a * s * s * b + 16 * s * b


@SHAPES
def test_selective_recomputation_keeps_34_sbh_and_full_2_sbh(b: int, s: int, a: int, d: int) -> None:
    """Section 5: without the attention's core 34 sbh; a checkpointed layer keeps its input, 2 sbh (their table 2)."""
    n, tape, ids = 3, layers(b, s, a, a * d, n=3), 8 * s * b
    assert sum(nbytes for name, nbytes in kept(tape).items() if "core." not in name) == s * b * (34 * a * d + 16)
    assert sweep(tape, gradient_itemsize=lambda _: 2, checkpointing=Checkpointing()).saved == n * 2 * s * b * a * d + ids


@pytest.mark.parametrize(("name", "a", "h", "core", "saved"), [("GPT-3", 96, 12288, 80, 0.70), ("MT-NLG", 128, 20480, 64, 0.65)])
def test_the_examples_of_section_5(name: str, a: int, h: int, core: int, saved: float) -> None:
    """At s = 2,048 the attention's core is 80 of GPT-3's 114 sbh and 64 of MT-NLG's 98: recomputing it saves 70 % and 65 %."""
    s = 2048
    found = kept(layers(1, s, a, h))
    inside = sum(nbytes for tensor, nbytes in found.items() if "core." in tensor)
    assert inside == core * s * h
    assert inside / (sum(found.values()) - 16 * s) == pytest.approx(saved, abs=0.005)


def test_outside_the_layers() -> None:
    """Section 4.3: the embeddings' dropout sbh, and at the end 4 sbh (1 + v/h): final norm 2 sbh, head 2 sbh, logits in fp32 4 sbv."""
    b, s, h, v = 3, 64, 128, 1000
    t = blank(b, s)
    x = dropout(t, embed(t, "embedding", v, h)[0], 0.1)
    cross_entropy(t, linear(t, layer_norm(t, x, "norm"), "head", v, kind="head"))
    ids, stats = 8 * s * b, 8 * s * b
    assert t.saved_bytes - ids - stats == s * b * h + 4 * s * b * h + 4 * s * b * v


# ---- transformers -------------------------------------------------------------------------
B, S, A, H = 2, 256, 8, 512
GPT2: dict[str, Any] = {"model_type": "gpt2", "n_embd": H, "n_head": A, "n_positions": S, "vocab_size": 99}
DIFFERENT = [
    ("eager", "gelu_pytorch_tanh", 0, 0),
    ("eager", "gelu_new", 24, 0),
    ("sdpa", "gelu_pytorch_tanh", 0, -5),
    ("sdpa", "gelu_new", 24, -5),
]


def expected(kernels: str, sbh: int, as2b: int) -> int:
    """The paper's bytes, and by how many s·b·h and a·s²·b a variant differs; flash attention's log-sum-exp, in fp32, is 4·a·b·s."""
    lse = 4 * A * B * S if kernels == "sdpa" else 0
    return (34 + sbh) * S * B * H + (5 + as2b) * A * S * S * B + lse


@pytest.mark.parametrize(("kernels", "act", "sbh", "as2b"), DIFFERENT)
def test_gpt2_of_transformers(kernels: str, act: str, sbh: int, as2b: int) -> None:
    """With eager attention and a GeLU in one kernel it is the paper's formula to the byte.

    GPT-2's own GeLU (`gelu_new`) is written out, and keeps tanh, 1 + tanh and x/2 too: 24 sbh more. Flash attention keeps none of 5 as²b,
    and is so their selective recomputation, inside a kernel.
    """
    found = kept(walk(blank(B, S, attention=kernels), {**GPT2, "n_layer": 3, "activation_function": act}))
    assert sum(found.values()) == expected(kernels, sbh, as2b) + 16 * S * B


def test_a_softmax_that_goes_through_fp32() -> None:
    """Llama's eager attention: softmax in fp32 and its cast are 6 as²b, where the paper's softmax, mask and dropped probabilities are 5."""
    llama = {"model_type": "llama", "hidden_size": H, "num_attention_heads": A, "intermediate_size": 4 * H, "vocab_size": 99}
    found = kept(walk(blank(B, S, attention="eager"), {**llama, "num_hidden_layers": 3}))
    core = [found["self_attn.attention.softmax"], found["self_attn.attention.cast"]]
    assert core == [4 * A * S * S * B, 2 * A * S * S * B]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kernels", "act", "sbh", "as2b"), DIFFERENT)
def test_the_real_gpt2_keeps_as_much(kernels: str, act: str, sbh: int, as2b: int) -> None:
    """A traced step of transformers' GPT2LMHeadModel: one layer more keeps as much more, but for the norms' statistics and flash's seed.

    Fake CPU tensors have those statistics in 16 bits, where a GPU has them in fp32.
    """
    pytest.importorskip("transformers")
    from vramplan.trace.recipe import Recipe
    from vramplan.trace.step import trace

    def saved(layers: int) -> int:
        config = {**GPT2, "n_layer": layers, "activation_function": act}
        made = trace(Recipe(config=config, precision="fp16", micro_batch=B, sequence_length=S, attention=kernels))
        last = [n for n, block in enumerate(made.blocks) if made.phases[block.phase][0] == 1]
        return sum(made.blocks[n].nbytes for n in last if made.category(n) == "saved activations")

    assert saved(4) - saved(3) - expected(kernels, sbh, as2b) - 8 * S * B in range(65)
