"""transformers' account: prefill and decode, logits by version, windows, workspaces. Published peaks: published/transformers.toml."""

from __future__ import annotations

from typing import Any

import pytest

from vramplan import Estimate, Unknown, estimate
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
