"""Tensor with sequence parallelism in training: the forms of Korthikanti et al. 2022, what holds of any degree, what torchtitan refuses."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from test_korthikanti import kept, layers
from vramplan import estimate
from vramplan.dim import Dim
from vramplan.errors import BadInput, Unknown
from vramplan.families import walk
from vramplan.kernels import Kernels
from vramplan.methods import Full
from vramplan.parallel import sequence_parallel, tensor_parallel
from vramplan.parallel.sequence import DTENSOR, Style
from vramplan.sweep import sweep
from vramplan.tape import Tape

MEGATRON = Style(regathers=True)
LLAMA = {"model": "meta-llama/Llama-3.1-8B", "task": "train", "engine": "torchtitan"}
TINY: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "vocab_size": 512,
}
SHAPES = given(b=st.integers(1, 4), s=st.integers(1, 32), d=st.integers(1, 16), t=st.sampled_from([1, 2, 4, 8]))


def llama(batch: int = 2, tokens: int = 32) -> Tape:
    tape = Tape(Dim(batch, "batch"), Dim(tokens, "tokens"), 0, 2, Kernels(logits="all", norm="fused", rope="complex", mlp="plain"))
    tape.method = Full()
    return walk(tape, TINY)


@SHAPES
def test_the_papers_forms(b: int, s: int, d: int, t: int) -> None:
    """Table 2: a layer keeps sbh(10 + 24/t + 5as/ht), and with sequence parallelism sbh(34 + 5as/h)/t; and its norms' statistics."""
    s, a = s * t, 8
    tape, sbh, core, stats = layers(b, s, a, a * d), s * b * a * d, 5 * a * s * s * b, 16 * s * b
    assert sum(kept(tensor_parallel(tape, t)).values()) == 10 * sbh + 24 * sbh // t + core // t + stats
    assert sum(kept(sequence_parallel(tape, t, MEGATRON)).values()) == (34 * sbh + core + stats) // t


@SHAPES
def test_dtensors_keep_what_was_gathered(b: int, s: int, d: int, t: int) -> None:
    """The inputs of the two column-parallel layers, 2 sbh each, are whole on every rank (Korthikanti's text before equation 4)."""
    if t > 1:
        s, a = s * t, 8
        tape, sbh = layers(b, s, a, a * d), s * b * a * d
        shared, gathered = (sum(kept(sequence_parallel(tape, t, style)).values()) for style in (MEGATRON, DTENSOR))
        assert gathered - shared == 4 * sbh - 4 * sbh // t


@pytest.mark.parametrize("style", [MEGATRON, DTENSOR])
@pytest.mark.parametrize("degree", [2, 4, 8])
def test_the_ranks_make_the_whole(style: Style, degree: int) -> None:
    """Weights of layers, FLOPs and what is split by name or by tokens add up to one GPU's; norms are whole on every rank."""
    whole = llama()
    mine = sequence_parallel(whole, degree, style)
    norms = sum(w.numel for w in whole.weights if w.kind == "norm")
    assert degree * mine.parameters == whole.parameters + (degree - 1) * norms
    assert degree * mine.flops == whole.flops
    assert len(mine.weights) == len(whole.weights)
    for op in mine.ops:
        assert all(t.storage.born <= t.storage.last for t in (*op.reads, *op.writes))


def test_what_is_exchanged() -> None:
    """Before attention, MLP and head all tokens are gathered; after embedding, attention and MLP sums are scattered."""
    names = [op.name for op in sequence_parallel(llama(), 2).ops]
    gathered = [name for name in names if name.endswith(".gathered")]
    scattered = [name for name in names if name.endswith(".scattered")]
    assert [name.split(".")[-2] for name in gathered] == ["input_layernorm", "post_attention_layernorm", "norm"]
    assert [name.split(".")[-2] for name in scattered] == ["embed_tokens", "o_proj", "down_proj"]


def test_degree_one_is_the_identity() -> None:
    tape = llama()
    assert sequence_parallel(tape, 1) is tape
    assert tensor_parallel(tape, 1) is tape
    few = {**LLAMA, "gpu_count": 8}
    assert estimate(**few, tensor_parallel=1).facts == estimate(**few).facts


@pytest.mark.parametrize("style", [MEGATRON, DTENSOR])
def test_more_ranks_take_less(style: Style) -> None:
    peaks = [sweep(sequence_parallel(llama(), n, style), gradient_itemsize=lambda _: 2).backward.nbytes for n in (1, 2, 4, 8)]
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            {"gpu_count": 8, "tensor_parallel": 3},
            "tensor_parallel 3: attention heads, 32, must divide by it; the nearest that work are 2 and 4",
        ),
        ({"gpu_count": 16, "tensor_parallel": 16}, "kv heads, 8, must divide by it; the nearest that work are 8 and 4"),
        ({"gpu_count": 8, "tensor_parallel": 4, "sequence_length": 1002}, "sequence_length, 1,002, must divide by it"),
        ({"gpu_count": 6, "tensor_parallel": 4}, "gpu_count 6: tensor_parallel 4 does not divide it; the nearest is 3"),
        ({"gpu_count": 8, "tensor_parallel": 2, "context_parallel": 8}, "the 4 that tensor_parallel 2 leaves; the nearest is 4"),
        ({"gpu_count": 2, "tensor_parallel": 2}, "mixed precision with FSDP only; add GPUs, or precision fp32"),
    ],
)
def test_contradictions_name_the_remedy(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        estimate(**LLAMA, **keys)


def test_what_is_not_estimated() -> None:
    with pytest.raises(Unknown, match="tensor_parallel 2 with compile: estimated without"):
        estimate(**LLAMA, gpu_count=8, tensor_parallel=2, compile=True)
