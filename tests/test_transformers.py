"""transformers' account: prefill and decode, logits by version, windows, workspaces. Published peaks: published/transformers.toml."""

from __future__ import annotations

from typing import Any

import pytest

from vramplan import BadInput, Estimate, Unknown, estimate
from vramplan.ledger import Moment
from vramplan.units import GiB, MiB

LLAMA = "meta-llama/Llama-3.1-8B"


def generate(model: Any = LLAMA, **more: Any) -> Estimate:
    return estimate(model, engine="transformers", **{"prompt_length": 4096, "context_length": 4096, **more})


def test_the_cache_is_the_prompt_s_at_prefill_and_the_context_s_at_decode() -> None:
    ledger = generate(prompt_length=1000, output_length=500, context_length=1500, sequences=3).ledger
    assert ledger.total("kv cache", moment=Moment.PREFILL) == 3 * 1000 * 131072
    assert ledger.total("kv cache", moment=Moment.DECODE) == 3 * 1500 * 131072


def test_lengths_that_are_left_out_follow_from_the_others() -> None:
    assert generate(prompt_length=None, output_length=96, context_length=4096).scenario.prompt_length == 4000
    assert generate(prompt_length=1000, output_length=24, context_length=None).scenario.context_length == 1024
    filled = generate(prompt_length=None, context_length=None).scenario
    assert (filled.prompt_length, filled.context_length, filled.sequences) == (4096, 4096, 1)


def test_a_long_output_moves_the_peak_to_decode() -> None:
    assert generate().peak[0] is Moment.PREFILL
    assert generate(prompt_length=16, output_length=100_000, context_length=100_016).peak[0] is Moment.DECODE


@pytest.mark.parametrize(("version", "logits"), [("4.44.2", 6 * 4096 * 128256), ("4.45.0", 0)])
def test_logits_of_all_tokens_and_their_fp32_copy_until_4_45(version: str, logits: int) -> None:
    """6 B × tokens × vocabulary are the peak where the vocabulary is large, beside the final hidden states."""
    peak = generate(engine_version=version).ledger.total("activations", moment=Moment.PREFILL)
    if logits:
        assert logits <= peak <= logits + 3 * 4096 * 4096 * 2
    else:
        assert peak < 0.5 * GiB


def test_sliding_layers_keep_their_window() -> None:
    """Gemma-2-9B: 21 layers of 4,096 and 21 of all tokens, 8,192 B each a token."""
    ledger = generate("google/gemma-2-9b", prompt_length=8192, context_length=8192).ledger
    assert ledger.total("kv cache", "window", moment=Moment.DECODE) == 21 * 4096 * 8192
    assert ledger.total("kv cache", "full attention", moment=Moment.DECODE) == 21 * 8192 * 8192


def test_eager_attention_holds_masked_scores_their_copy_and_softmax() -> None:
    """`softmax(attn_weights, dtype=float32)`: 2, 4 and 4 B of [heads, s, s] at once (modeling_llama.py; aten/native/SoftMax.cpp)."""
    scores = 32 * 4096 * 4096
    eager = generate(attention="eager").ledger.total("activations", moment=Moment.PREFILL)
    assert 10 * scores <= eager <= 10.5 * scores


def test_flash_and_sdpa_hold_no_scores() -> None:
    assert generate(attention="flash").peak == generate(attention="sdpa").peak
    assert generate().ledger.total("activations", moment=Moment.PREFILL) < 32 * 4096 * 4096


@pytest.mark.parametrize(("gpu", "workspace"), [("rtx-4090", 8_519_680), ("h100-sxm-80gb", 32 * MiB), (None, 8_519_680)])
def test_cublas_workspace_by_compute_capability(gpu: str | None, workspace: int) -> None:
    answer = generate(gpu=gpu)
    assert answer.ledger.total("workspace") == workspace
    assert answer.quantities["process"] == answer.quantities["peak_allocated"] + 300 * MiB == answer.peak[1]


def test_the_weights_dtype_is_that_of_cache_and_activations() -> None:
    half, full = generate(weights="bf16"), generate(weights="fp32")
    assert full.quantities["weights"] == 2 * half.quantities["weights"]
    assert full.quantities["kv_bytes_per_token"] == 2 * half.quantities["kv_bytes_per_token"]
    assert generate(weights="nf4").quantities["kv_bytes_per_token"] == half.quantities["kv_bytes_per_token"]


def test_gguf_files_are_refused() -> None:
    with pytest.raises(Unknown, match="dequantises GGUF"):
        generate(weights="Q4_K_M")
    with pytest.raises(Unknown, match="compile"):
        generate(compile=True)


# ---- other caches, beams, assistants, judged together in test_traced_generate.py ---------------------------------------------
def cached(moment: Moment, **more: Any) -> int:
    return generate(prompt_length=4000, output_length=96, **more).ledger.total("kv cache", moment=moment)


def test_a_static_cache_is_as_long_as_it_will_be_from_the_first_token_on() -> None:
    assert cached(Moment.PREFILL, cache_implementation="static") == 4096 * 131072 == cached(Moment.DECODE, cache_implementation="static")


def test_of_an_offloaded_cache_one_layer_is_there_in_the_prefill_and_two_in_the_decode() -> None:
    assert cached(Moment.PREFILL, cache_implementation="offloaded") == 4000 * 131072 // 32
    assert cached(Moment.DECODE, cache_implementation="offloaded") == 2 * 4096 * 131072 // 32


def test_a_quantised_cache_has_its_bits_and_two_numbers_for_each_group_of_64() -> None:
    """4 bits and 4 B for 64 elements: 4.5 bits of 16, and a layer's keys and values unpacked, joined and packed anew (three of them), with
    127 tokens of every layer as they are.
    """
    elements = 4096 * 131072 // 2
    packed = elements // 2 + elements // 64 * 4
    assert cached(Moment.DECODE, cache_implementation="quanto-int4") == packed + 3 * elements * 2 // 32 + 127 * 131072
    assert cached(Moment.PREFILL, cache_implementation="quanto-int4") == 4000 * 131072 // 2 * 9 // 16


@pytest.mark.parametrize(("bits", "nbytes"), [(8, 64), (4, 32), (3, 28), (2, 16), (1, 8)])
def test_hqq_packs_64_elements_with_a_scale_and_a_zero_point(bits: int, nbytes: int) -> None:
    """Three bits: 10 of 64 rows in an int32, in 7 rows. To pack a layer's keys it takes 22 B an element and 24 for a group of 64."""
    elements = 4096 * 131072 // 2
    layer = 2 * elements * 2 // 32 + elements // 64 * (22 * 64 + 24) // 64
    expected = elements // 64 * (nbytes + 4) + layer + 127 * 131072
    assert cached(Moment.DECODE, cache_implementation=f"hqq-int{bits}") == expected
    assert cached(Moment.PREFILL, cache_implementation=f"hqq-int{bits}") == 4000 * 131072 // 128 * (nbytes + 4)


def test_a_prompt_without_grouped_queries_is_most_where_hqq_packs_it() -> None:
    answer = generate("meta-llama/Llama-2-7b-hf", prompt_length=3840, output_length=256, sequences=2, cache_implementation="hqq-int4")
    peak = next(item for item in answer.ledger.items if item.path == ("activations", "prefill"))
    assert "packed" in peak.why


def test_a_dynamic_cache_s_largest_layer_is_there_twice_while_it_grows() -> None:
    """One layer's keys beside new ones: 8 heads of 128 at 100,015 tokens."""
    long = generate(prompt_length=16, output_length=100_000, context_length=100_016).ledger.total("activations", moment=Moment.DECODE)
    assert 100_015 * 2048 <= long <= 100_015 * 2048 + 2 * 128256 * 4


def test_beams_multiply_the_sequences() -> None:
    assert cached(Moment.DECODE, num_beams=4) == cached(Moment.DECODE, sequences=4) == 4 * cached(Moment.DECODE)


def test_an_assistant_has_weights_and_a_cache_of_its_own() -> None:
    ledger = generate(draft_model="meta-llama/Llama-3.2-1B", prompt_length=1000, output_length=24, context_length=1024).ledger
    assert ledger.total("draft model", "weights") == 2 * 1_235_814_400
    assert ledger.total("draft model", "kv cache", moment=Moment.DECODE) == 1024 * 32768


def test_the_decode_copies_the_chosen_experts_since_5_0() -> None:
    """64 × 8 matrices of each kind, Qwen3-30B-A3B: 768 × 2,048 three times, in 16 bits."""
    wide = {"model": "Qwen/Qwen3-30B-A3B", "sequences": 64, "prompt_length": 16, "context_length": 1024}
    now, before = (generate(engine_version=v, **wide).ledger.total("activations", moment=Moment.DECODE) for v in ("5.23", "4.57"))
    assert now - before > 0.9 * 64 * 8 * 3 * 768 * 2048 * 2


# ---- loading --------------------------------------------------------------------------------------------------------------------
def test_bitsandbytes_leaves_stacked_experts_in_16_bits() -> None:
    """Qwen3-30B-A3B: 28,991,029,248 elements of its experts are one tensor in each layer since 5.0; before, each was an nn.Linear."""
    now, before = (generate("Qwen/Qwen3-30B-A3B", weights="nf4", engine_version=v).quantities["weights"] for v in ("5.23", "4.57"))
    assert 28_991_029_248 * 2 < now < 61_000_000_000
    assert before < 18_200_000_000


def test_a_checkpoint_is_unpacked_where_the_gpu_lacks_the_kernel() -> None:
    packed, plain = (
        generate("openai/gpt-oss-20b", gpu=gpu, prompt_length=64, context_length=64) for gpu in ("a100-sxm-80gb", "v100-sxm2-32gb")
    )
    assert packed.quantities["weights"] < 14e9
    assert plain.quantities["weights"] > 41e9
    assert any("unpacked" in line for line in plain.assumptions)


# ---- several GPUs and the host ----------------------------------------------------------------------------------------------------
def test_a_device_map_shares_weights_caches_and_what_is_left_for_the_host() -> None:
    """Each GPU's layers have their caches there; the first has those of the host's layers too, whose modules come there in turn."""
    answer = generate("meta-llama/Llama-3.1-70B", gpu="rtx-4090", gpu_count=4)
    whole = generate("meta-llama/Llama-3.1-70B")
    held = [share.ledger.total("weights", moment=Moment.DECODE) for share in answer.shares]
    assert sum(held) + answer.host.total("weights") == whole.quantities["weights"]
    assert sum(share.ledger.total("kv cache", moment=Moment.DECODE) for share in answer.shares) == whole.quantities["kv_cache"]
    first = next(share for share in answer.shares if share.rank == 0)
    assert first.ledger.total("offloaded weights", moment=Moment.DECODE) == 128256 * 8192 * 2


def test_one_gpu_keeps_a_tenth_of_its_memory() -> None:
    answer = generate(gpu="rtx-3060", device_map="auto")
    assert answer.ledger.total("weights", moment=Moment.DECODE) < 0.9 * 12 * GiB
    assert answer.host.total("weights") > 0


# ---- bad input --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"model": "google/gemma-2-9b", "cache_implementation": "quanto-int4"}, "cache_implementation 'quanto-int4'.*full attention"),
        ({"draft_model": "meta-llama/Llama-3.2-1B", "sequences": 2}, "sequences 2: .*one sequence"),
        ({"draft_model": "meta-llama/Llama-3.2-1B", "num_beams": 2}, "num_beams 2"),
        ({"draft_model": "Qwen/Qwen3-0.6B"}, "draft_model Qwen/Qwen3-0.6B: its vocabulary"),
        ({"draft_model": "meta-llama/Llama-3.2-1B", "cache_implementation": "static"}, "cache_implementation 'static'.*crop"),
        ({"device_map": "auto"}, "device_map: .*name a gpu"),
        (
            {"model": "meta-llama/Llama-3.1-70B", "weights": "nf4", "gpu": "rtx-4090", "gpu_count": 1, "device_map": "auto"},
            "CPU or the disk",
        ),
        ({"model": "openai/gpt-oss-20b", "attention": "sdpa"}, "attention 'sdpa'"),
        ({"weights": "fp32", "attention": "flash"}, "attention 'flash'"),
    ],
)
def test_bad_input_is_answered_as_transformers_would(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        generate(**keys)


@pytest.mark.parametrize(("model", "version"), [("Qwen/Qwen2-0.5B-Instruct", "4.38.2"), ("Qwen/Qwen2.5-0.5B-Instruct", "4.46.0")])
def test_a_tied_head_that_autoawq_stored_is_the_peak_while_it_loads(model: str, version: str) -> None:
    """0.68 GiB was measured for both (QwenLM/Qwen3, docs/source/benchmark/speed_benchmark.rst), though only one has tables of positions."""
    answer = generate(model, weights="awq", engine_version=version, prompt_length=1, output_length=2048, context_length=2049)
    assert round(answer.quantities["peak_allocated"] / GiB, 2) == 0.68
    later = generate(model, weights="awq", engine_version="4.51.3", prompt_length=1, output_length=2048, context_length=2049)
    assert later.ledger.total("load", moment=Moment.LOAD) == 0


def test_autogptq_keeps_a_matrix_in_fp16_zero_points_and_the_groups_of_columns() -> None:
    """Qwen2.5-7B: 3,584 × 18,944 in fp16 for ExLlama's kernel of 4 bits; measured with AutoGPTQ: 5.52 and 11.11 GiB."""
    before, now = (generate("Qwen/Qwen2.5-7B-Instruct", weights="gptq", engine_version=v) for v in ("4.46.0", "4.51.3"))
    assert before.ledger.total("workspace", "ExLlama") == 3_584 * 18_944 * 2
    assert now.ledger.total("workspace", "ExLlama") == 0
    linears = 28 * 3_584 * (2 * 3_584 + 2 * 512 + 3 * 18_944)
    columns = 28 * (6 * 3_584 + 18_944)
    assert before.quantities["weights"] - now.quantities["weights"] == linears // 128 // 2 + columns * 4
    eight = generate("Qwen/Qwen2.5-7B-Instruct", weights="gptq-8bit", engine_version="4.46.0")
    assert eight.ledger.total("workspace", "ExLlama") == 0


def test_since_4_50_weights_are_cut_from_one_block_without_remainders() -> None:
    """A matrix of [9728, 2560] in bf16 takes 48 MiB of its own, of which it needs 47.5."""
    before, since = (generate("Qwen/Qwen3-4B", engine_version=v) for v in ("4.49.0", "4.50.0"))
    assert since.ledger.total("allocator") == 0 < 108 * MiB // 2 <= before.ledger.total("allocator")
