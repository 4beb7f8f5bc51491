"""ExLlamaV2 and V3: published sizes, buffers by the arithmetic of their source, what they refuse. Neither is validated by measurement."""

from __future__ import annotations

from typing import Any

import pytest

from vramplan import BadInput, Estimate, Unknown, estimate
from vramplan.ledger import Moment
from vramplan.units import GiB, MiB

LLAMA = "meta-llama/Llama-3.1-8B"
ERNIE = {
    "model_type": "ernie4_5_moe", "hidden_size": 8192, "intermediate_size": 28672, "moe_intermediate_size": 3584, "num_hidden_layers": 54,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 103424, "moe_num_experts": 64, "moe_k": 8,
    "moe_layer_start_index": 3, "moe_layer_end_index": 53, "moe_layer_interval": 1, "moe_num_shared_experts": 0,
    "tie_word_embeddings": False, "max_position_embeddings": 131072,
}  # fmt: skip
"""baidu/ERNIE-4.5-300B-A47B-PT, as its config.json has it."""


def v2(model: Any = LLAMA, **more: Any) -> Estimate:
    return estimate(model, engine="exllamav2", **{"weights": "exl2-4.0bpw", "gpu": "rtx-4090", "context_length": 8192, **more})


def v3(model: Any = LLAMA, **more: Any) -> Estimate:
    return estimate(model, engine="exllamav3", **{"weights": "exl3-4.0bpw", "gpu": "rtx-4090", "context_length": 8192, **more})


# ---- weights ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("bits", "printed"), [("2.0", 70.2), ("3.0", 104.9), ("4.0", 139.5)])
def test_exl3_weights_are_the_published_size(bits: str, printed: float) -> None:
    """turboderp/ERNIE-4.5-300B-A47B-PT-exl3: "size of .safetensors files excluding embedding layer", which is what is on the GPU; in
    binary GB, as the three agree on.
    """
    assert v3(ERNIE, weights=f"exl3-{bits}bpw").ledger.total("weights") / GiB == pytest.approx(printed, rel=0.001)


def test_the_embedding_is_in_host_memory_and_a_tied_head_is_a_matrix_of_its_own() -> None:
    small = v3("meta-llama/Llama-3.2-1B")
    assert small.host.total("weights", "embedding") == 128256 * 2048 * 2
    assert small.ledger.total("weights", "embedding") == 0
    assert small.ledger.total("weights", "head") == 128256 * 2048 * 6 // 8 + 2 * (128256 + 2048) + 4


def test_exl3_pads_sizes_to_128() -> None:
    """gpt-oss: 2,880 becomes 2,944 (exllamav3 modules/linear.py)."""
    one = (2944 * 2944 - 2880 * 2880) // 2 + 2 * 2 * (2944 - 2880)
    layer = 32 * 3 * one - 32 * 2 * 64  # the input's signs, which gate and up have in common here
    grown = v3("openai/gpt-oss-20b").ledger.total("weights", "padding")
    assert grown == pytest.approx(24 * layer, rel=0.05)
    assert v3().ledger.total("weights", "padding") == 0


def test_towers_are_loaded_apart() -> None:
    assert not [item for item in v3("google/gemma-3-27b-it").ledger.items if "tower" in "".join(item.path)]


# ---- caches -------------------------------------------------------------------------------------------------------------
TOKEN = 32 * 8 * 128
"""Elements of keys of one token in all layers of Llama-3.1-8B."""


@pytest.mark.parametrize(
    ("kv", "cache"),
    [
        ("auto", 2 * TOKEN * 2 * 8192),
        ("fp8", (2 * TOKEN + 2 * 2 * TOKEN // 32) * 8192),
        ("q4", (2 * TOKEN * 18 // 32 + 2 * 2 * TOKEN // 32) * 8192),
        ("q6", (TOKEN * 34 // 32 + TOKEN * 18 // 32 + 2 * 2 * TOKEN // 32) * 8192),  # keys in 8 bits, values in 4
        ("q8", (2 * TOKEN * 34 // 32 + 2 * 2 * TOKEN // 32) * 8192),
    ],
)
def test_v2_caches(kv: str, cache: int) -> None:
    """exllamav2 cache.py: quantised caches keep one layer's keys and values in fp16 too."""
    assert v2(kv_dtype=kv).ledger.total("kv cache") == cache


@pytest.mark.parametrize(("kv", "bits"), [("q8", 8), ("q5", 5), ("q2", 2)])
def test_v3_caches(kv: str, bits: int) -> None:
    """exllamav3 cache/quant.py: `bits` integers of 32 bits and a half for each 32 elements."""
    assert v3(kv_dtype=kv).ledger.total("kv cache") == 2 * TOKEN // 32 * (4 * bits + 2) * 8192
    assert v3(kv_dtype={"k": "q8", "v": kv}).ledger.total("kv cache") == TOKEN // 32 * (34 + 4 * bits + 2) * 8192


def test_caches_are_whole_pages_for_all_sequences() -> None:
    assert v3(context_length=1000, sequences=3).quantities["kv_tokens"] == 3072


def test_windows_have_rings_where_v3_builds_them() -> None:
    """gpt-oss: 12 layers with windows of 128, a ring of 128 + 512 tokens in whole pages for each sequence, always in fp16."""
    ring = v3("openai/gpt-oss-20b", sequences=2, kv_dtype="q4").ledger.total("kv cache", "window")
    assert ring == 2 * 12 * 2 * 768 * 8 * 64 * 2
    assert v3("google/gemma-3-27b-it").ledger.total("kv cache", "window") == 2 * 52 * 8192 * 16 * 128 * 2


# ---- buffers ------------------------------------------------------------------------------------------------------------
def test_v2_scratch_is_the_heads_matrix() -> None:
    """Llama-3.1-8B: the head of 128,256 × 4,096 in fp16; with chunks of 8,192 the MLP's hidden state, intermediates and a matrix."""
    assert v2().ledger.total("buffers", "scratch") == 2 * 128256 * 4096
    large = v2("mistralai/Mistral-7B-v0.1", max_batched_tokens=8192).ledger.total("buffers", "scratch")
    assert large == 8192 * 4096 * 2 + 128 + 2 * (8192 * 14336 * 2 + 128) + 2 * 4096 * 14336


def test_v2_loads_with_a_reserve_and_logits_of_a_chunk() -> None:
    answer = v2()
    assert answer.peak[0] is Moment.LOAD
    assert answer.ledger.total("load") == 448 * MiB + 2048 * 128256 * 2
    assert answer.ledger.total("buffers", "rotary") == 2 * 8192 * 128 * 2


def test_v3_keeps_half_a_gibibyte_while_it_loads() -> None:
    assert v3().ledger.total("load", "reserve") == GiB // 2


def test_v2_experts() -> None:
    """Mixtral: gathered states, two intermediates, routing weights and an expert's matrix, less than attention and head need."""
    chunk = 2048
    need = 2 * (chunk * 4096 * 2 + 128) + 2 * (chunk * 14336 * 2 + 128) + chunk * 8 * 2 + 128 + 2 * 4096 * 14336
    head = 2 * 32000 * 4096
    assert v2("mistralai/Mixtral-8x7B-v0.1").ledger.total("buffers", "scratch") == max(need, head)


# ---- several GPUs -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("call", [v2, v3])
def test_gpus_are_filled_in_turn(call: Any) -> None:
    """Llama-3.3-70B at 4 bits on two cards of 24 GiB: the first takes all that fits, the second the rest with the head."""
    answer = call("meta-llama/Llama-3.3-70B-Instruct", gpu="rtx-3090", gpu_count=2, context_length=4096)
    assert answer.fits is True
    first, second = sorted(answer.shares, key=lambda share: share.rank)
    assert 0 <= first.headroom < 2**29  # less than a layer: 0.41 GiB and its cache
    assert first.ledger.total("weights", "head") == 0 < second.ledger.total("weights", "head")
    whole = call("meta-llama/Llama-3.3-70B-Instruct", gpu=None, context_length=4096).ledger
    for path in (("weights", "mlp"), ("weights", "attention"), ("weights", "norms"), ("kv cache", "full attention")):
        assert sum(share.ledger.total(*path) for share in answer.shares) == whole.total(*path)


def test_what_fits_one_gpu_stays_there() -> None:
    assert [share.rank for share in v3(gpu_count=4).shares] == [0]


def test_the_last_gpu_takes_what_does_not_fit() -> None:
    answer = v2("meta-llama/Llama-3.3-70B-Instruct", weights="exl2-8.0bpw", gpu="rtx-3090", gpu_count=2)
    assert answer.fits is False
    assert answer.shares[0].rank == 1


# ---- refusals -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "more", "error", "message"),
    [
        (v2, {"weights": "Q4_K_M"}, BadInput, "weights 'Q4_K_M'"),
        (v2, {"weights": "exl3-4.0bpw"}, BadInput, "weights 'exl3-4.0bpw'"),
        (v3, {"weights": "exl2-4.0bpw"}, BadInput, "weights 'exl2-4.0bpw'"),
        (v2, {"kv_dtype": "q8_0"}, BadInput, "kv_dtype 'q8_0'"),
        (v2, {"kv_dtype": {"k": "q8", "v": "q4"}}, BadInput, "one type for keys and values"),
        (v3, {"kv_dtype": {"k": "q8", "v": "fp16"}}, BadInput, "both or neither"),
        (v3, {"kv_dtype": "fp8"}, BadInput, "kv_dtype 'fp8'"),
        (v3, {"gpu": "m3 max 64gb"}, BadInput, "nvidia"),
        (v2, {"gpu_count": 2, "gpu": None}, BadInput, "fills one GPU after another"),
        (v3, {"tensor_parallel": 2}, Unknown, "tensor_parallel"),
        (v2, {"context_length": 200_000}, BadInput, "context_length"),
        (v3, {"runner": "pooling"}, Unknown, "runner"),
    ],
)
def test_refusals(call: Any, more: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(**more)
    if error is BadInput and "gpu" not in more:
        with pytest.raises(error):
            call(**{**more, "gpu": None})


def test_v2_runs_what_it_lists() -> None:
    with pytest.raises(BadInput, match="does not run GptOssForCausalLM"):
        v2({"model_type": "gpt_oss", "architectures": ["GptOssForCausalLM"], **_SMALL}, weights="fp16")


_SMALL = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "vocab_size": 256, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16, "max_position_embeddings": 65536,
}  # fmt: skip
