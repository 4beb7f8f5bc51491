"""Training methods: what trains, where adapters stand, what packed bases take; by hand, and by figures of the real code.

The figures were measured once: PEFT 0.21.2 over transformers 4.57.1 (experts that are modules) and torch 2.13 on a CPU, the bytes of the
distinct storages that autograd holds after a forward pass in bf16. `tests/referee/test_adapters.py` measures the newest versions again.
"""

from __future__ import annotations

from typing import Any

import pytest

from vramplan import BadInput, Unknown, estimate
from vramplan.dim import Dim
from vramplan.families import walk
from vramplan.kernels import Kernels
from vramplan.ledger import Moment
from vramplan.methods import Adapters, Full, ends, inside, packed_as, variant
from vramplan.ops.packed import Packed
from vramplan.tape import Tape

LLAMA = "meta-llama/Llama-3.2-1B"
HIDDEN, FFN, KV, LAYERS, VOCAB = 2048, 8192, 512, 16, 128_256
WIDTHS = {
    "q_proj": (HIDDEN, HIDDEN),
    "k_proj": (HIDDEN, KV),
    "v_proj": (HIDDEN, KV),
    "o_proj": (HIDDEN, HIDDEN),
    "gate_proj": (HIDDEN, FFN),
    "up_proj": (HIDDEN, FFN),
    "down_proj": (FFN, HIDDEN),
}


def of(model: str = LLAMA, **keys: Any) -> Any:
    return estimate(model, **{"task": "train", "sequence_length": 512, **keys})


def trained(**keys: Any) -> int:
    return of(**keys).facts["trainable_parameters"]


# ---- which layers ---------------------------------------------------------------------------
def test_rank_times_in_and_out_for_every_layer() -> None:
    """8 · (in + out) for each target; DoRA has a magnitude [out] more (Liu et al., arXiv:2402.09353)."""
    plain = LAYERS * sum(8 * (i + o) for i, o in WIDTHS.values())
    lora = {"rank": 8, "targets": "all-linear"}
    assert trained(method="lora", lora=lora) == trained(method="rslora", lora=lora) == plain
    assert trained(method="dora", lora=lora) == plain + LAYERS * sum(o for _, o in WIDTHS.values())
    assert trained(method="qlora", lora={**lora, "variant": "dora"}) == trained(method="dora", lora=lora)
    attention = LAYERS * sum(8 * (i + o) for name, (i, o) in WIDTHS.items() if name[0] in "qkvo")
    assert trained(method="lora", lora={"rank": 8, "targets": "attention"}) == attention


def test_embeddings_and_the_head_are_layers_by_name_only() -> None:
    """A [8, vocab] and B [hidden, 8] beside the embeddings; the head, though tied, is a layer of its own to PEFT."""
    one = LAYERS * 8 * sum(WIDTHS["q_proj"])
    edge = 8 * (VOCAB + HIDDEN)
    assert trained(method="lora", lora={"rank": 8, "targets": ["q_proj", "embed_tokens"]}) == one + edge
    assert trained(method="lora", lora={"rank": 8, "targets": ["q_proj", "lm_head"]}) == one + edge


def test_modules_to_save_are_copies_beside_frozen_originals() -> None:
    """Llama-3.2-1B's embeddings and head are one matrix of 128,256 × 2,048; saved, each has a copy beside the original."""
    without, both = (of(method="lora", trained_modules=names) for names in (None, ["embed_tokens", "lm_head"]))
    matrix = VOCAB * HIDDEN
    assert both.facts["trainable_parameters"] - without.facts["trainable_parameters"] == 2 * matrix
    assert both.ledger.total("weights", moment=Moment.STEP) - without.ledger.total("weights", moment=Moment.STEP) == 2 * matrix * 2
    one = of(method="lora", trained_modules=["embed_tokens"])
    assert one.facts["trainable_parameters"] - without.facts["trainable_parameters"] == matrix


def test_experts_are_adapted_as_stacked_parameters_where_peft_does_so() -> None:
    """Qwen3-30B-A3B: 48 layers, 128 experts of 768, rank 4, doubled where two matrices are one (PEFT 0.21, _convert_peft_config_moe)."""
    hidden, ffn, experts, layers, rank = 2048, 768, 128, 48, 4
    attention = layers * rank * ((2048 + 4096) + 2 * (2048 + 512) + (4096 + 2048))
    stacked = layers * experts * rank * (2 * (hidden + 2 * ffn) + (ffn + hidden))
    router = layers * rank * (hidden + experts)
    lora = {"rank": rank, "targets": "all-linear"}
    assert trained(model="Qwen/Qwen3-30B-A3B", method="lora", lora=lora) == attention + stacked + router
    named = {"rank": rank, "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
    assert trained(model="Qwen/Qwen3-30B-A3B", method="lora", lora=named) == attention + stacked
    alone = {"rank": rank, "targets": "attention"}
    assert trained(model="Qwen/Qwen3-30B-A3B", method="lora", lora=alone) == attention


def test_experts_that_are_modules_have_an_adapter_each() -> None:
    """Mixtral-8x7B before transformers 5: 8 experts of 14,336 in 32 layers, w1, w2 and w3 each, and the router."""
    hidden, ffn, layers, rank = 4096, 14336, 32, 4
    attention = layers * rank * (2 * (hidden + hidden) + 2 * (hidden + 1024))
    experts, router = layers * 8 * 3 * rank * (hidden + ffn), layers * rank * (hidden + 8)
    lora = {"rank": rank, "targets": "all-linear"}
    assert trained(model="mistralai/Mixtral-8x7B-v0.1", method="qlora", engine_version="4.57", lora=lora) == attention + experts + router


# ---- what the base is stored in -------------------------------------------------------------
def test_bitsandbytes_leaves_stacked_experts_in_sixteen_bits() -> None:
    """45.1 of Mixtral's 46.7 billion parameters are experts': about 90 GB in 16 bits; as modules they are packed to a quarter."""
    now, before = (of("mistralai/Mixtral-8x7B-v0.1", method="qlora", engine_version=v).ledger for v in ("5.23", "4.57"))
    experts = 32 * 8 * 3 * 4096 * 14336
    assert now.total("weights", moment=Moment.STEP) > 2 * experts
    assert before.total("weights", moment=Moment.STEP) < 0.6 * experts + 2 * 46_702_792_704 * 0.05


def test_k_bit_preparation_raises_what_is_not_packed_to_fp32() -> None:
    """Llama-3.2-1B: the embeddings and 33 norms, from 2 to 4 bytes; and checkpointing comes with it (PEFT 0.21 `utils/other.py`)."""
    plain, prepared = of(method="qlora"), of(method="qlora", kbit_preparation=True)
    more = prepared.ledger.total("weights", moment=Moment.STEP) - plain.ledger.total("weights", moment=Moment.STEP)
    assert more == 2 * (VOCAB * HIDDEN + 33 * HIDDEN)
    assert (plain.scenario.checkpointing, prepared.scenario.checkpointing) == ("none", "full")
    assert any("kbit_preparation" in line for line in plain.assumptions)


def test_eight_bits_are_a_byte_and_a_scale_a_row() -> None:
    """LLM.int8(): int8 weights and an fp32 scale for each output (Dettmers et al., arXiv:2208.07339)."""
    answer = of(method="qlora", quantization="int8", lora={"rank": 8})
    layers = sum(i * o + 4 * o for i, o in WIDTHS.values()) * LAYERS
    adapters = 4 * LAYERS * sum(8 * (i + o) for i, o in WIDTHS.values())
    assert answer.ledger.total("weights", moment=Moment.STEP) == layers + adapters + 2 * (VOCAB * HIDDEN + 33 * HIDDEN)


def test_checkpointing_does_not_reach_what_eight_bit_products_keep() -> None:
    """MatMul8bitLt keeps its input by itself: three of the width and one of the MLP's in each layer, beside the layer's own input."""
    tape = Tape(Dim(1, "b"), Dim(512, "s"), kernels=Kernels(logits="all"))
    tape.method = Adapters(rank=8, dtype="fp32", base=Packed(kind="int8"), checkpointing=True)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 1000}
    walk(tape, {"model_type": "llama", **sizes})
    assert sum(tensor.nbytes for tensor in tape.tensors if tensor.pinned) == 512 * 2 * (3 * 256 + 512)


# ---- frozen parts ---------------------------------------------------------------------------
def test_frozen_modules_have_no_gradients_and_no_states() -> None:
    """Llama-3.2-1B without its embeddings, which are its head too: 1,235,814,400 − 262,668,288."""
    assert trained(method="full", frozen_modules=["embed_tokens"]) == 1_235_814_400 - VOCAB * HIDDEN
    mlps = LAYERS * 3 * HIDDEN * FFN
    assert trained(method="full", frozen_modules=["mlp"]) == 1_235_814_400 - mlps


def test_backward_ends_where_nothing_before_it_trains() -> None:
    """With the embeddings frozen the first norm needs no gradient: its fp32 input, which all other layers keep, is not kept."""
    whole, frozen = (of(method="full", frozen_modules=names, optimizer="sgd") for names in (None, ["embed_tokens"]))
    saved = [answer.ledger.total("saved activations", moment=Moment.LOSS) for answer in (whole, frozen)]
    assert saved[0] - saved[1] == 512 * HIDDEN * 4 + 512 * 4 + 512 * 8  # the input, its root, the tokens' numbers


# ---- the real code, measured ----------------------------------------------------------------
SMALL = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 448,
    "vocab_size": 1000,
    "tie_word_embeddings": False,
    "num_local_experts": 4,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "sliding_window": None,
}


@pytest.mark.parametrize(
    ("kind", "targets", "dtype", "parameters", "saved"),
    [
        ("mixtral", "all-linear", "fp32", 95_280, 9_610_752),
        ("mixtral", "attention", "fp32", 10_752, 6_007_296),
        ("mixtral", "all-linear", "bf16", 95_280, 6_463_488),
        ("qwen3_moe", "all-linear", "fp32", 67_680, 5_645_568),
        ("qwen3_moe", "attention", "fp32", 10_752, 3_811_584),
        ("qwen3_moe", "all-linear", "bf16", 67_680, 3_383_040),
    ],
)
def test_adapters_on_experts_that_are_modules_keep_what_was_measured(
    kind: str, targets: str, dtype: str, parameters: int, saved: int
) -> None:
    tape = Tape(Dim(2, "b"), Dim(96, "s"), kernels=Kernels(logits="all", experts="looped"))
    tape.method = Adapters(rank=4, targets=targets, dtype=dtype, routers=True)
    walk(tape, {"model_type": kind, **SMALL})
    assert sum(weight.numel for weight in tape.weights if weight.part == "adapters") == parameters
    assert tape.saved_bytes - sum(tensor.nbytes for tensor in tape.tensors if tensor.spared) == saved


# ---- names and contradictions ---------------------------------------------------------------
def test_names_of_methods() -> None:
    assert variant("qlora", {"variant": "dora"}) == variant("dora", {}) == "dora"
    assert packed_as("qlora", None) == "nf4"
    assert packed_as("dora", "int8") == "int8"
    assert packed_as("lora", None) is None
    with pytest.raises(BadInput, match="leave one of them out"):
        variant("dora", {"variant": "rslora"})


def test_paths_end_in_names() -> None:
    assert ends("model.layers.{i}.mlp.experts.{e}.up_proj", ["experts.up_proj"])
    assert not ends("model.layers.{i}.mlp.gate_up_proj", ["up_proj"])
    assert inside("model.layers.{i}.self_attn.q_proj.weight", ["self_attn"])
    assert not Full(frozen=("norm",)).trains(_weight("model.norm.weight"))
    assert Full(frozen=("norm",)).trains(_weight("model.layers.{i}.input_layernorm.weight"))


def _weight(name: str) -> Any:
    return Tape(Dim(1), Dim(1)).weight(name, (2, 2), "linear")


@pytest.mark.parametrize(
    ("model", "keys", "says"),
    [
        (LLAMA, {"method": "lora", "lora": {"targets": ["q_prj"]}}, "did you mean 'q_proj'"),
        (LLAMA, {"method": "lora", "lora": {"targets": ["q_proj", "c_attn"]}}, "has no layer of this name"),
        (LLAMA, {"method": "lora", "trained_modules": ["head"]}, "trained_modules 'head'"),
        (LLAMA, {"method": "full", "frozen_modules": ["embeds"]}, "did you mean 'embed_tokens'"),
        (LLAMA, {"method": "lora", "frozen_modules": ["mlp"]}, "adapters freeze the whole model"),
        (LLAMA, {"method": "lora", "kbit_preparation": True}, "without a quantised base"),
        (LLAMA, {"method": "full", "quantization": "int8"}, "quantised weights do not train"),
        ("Qwen/Qwen3-30B-A3B", {"method": "dora"}, "try lora.targets attention"),
        ("Qwen/Qwen3-30B-A3B", {"method": "lora", "lora": {"dropout": 0.1}}, "try lora.targets attention"),
        ("Qwen/Qwen3-30B-A3B", {"method": "lora", "lora": {"targets": ["q_proj", "up_proj"]}}, "name both or neither"),
        ("tiiuae/Falcon-H1-0.5B-Instruct", {"method": "lora"}, "PEFT refuses out_proj"),
        ("ai21labs/AI21-Jamba-Mini-1.5", {"method": "qlora"}, "dt_proj"),
    ],
)
def test_contradictions_are_refused_in_one_line(model: str, keys: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput) as caught:
        of(model, **keys)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_dora_on_embeddings_is_not_known() -> None:
    with pytest.raises(Unknown, match="DoRA on embeddings"):
        of(method="dora", lora={"targets": ["embed_tokens"]})


def test_falcons_layers_are_passed_over_since_transformers_5_6() -> None:
    """FalconLinear is a subclass of Linear, and `type(module) is nn.Linear` (transformers `integrations/bitsandbytes.py`)."""
    now, before = (of("tiiuae/falcon-7b", method="qlora", engine_version=version) for version in ("5.23", "4.57"))
    assert now.ledger.total("weights", moment=Moment.STEP) > 2 * before.ledger.total("weights", moment=Moment.STEP)
    assert any("nothing is packed" in line for line in now.assumptions)
