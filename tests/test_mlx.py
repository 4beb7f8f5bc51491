"""MLX: published sizes, caches by mlx-lm's own steps, attention's scores, what it refuses. Not validated by measurement."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramplan import BadInput, Estimate, Unknown, estimate
from vramplan.engines.mlx import STEP, capacity
from vramplan.ledger import Moment

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def mlx(model: str = LLAMA, **more: Any) -> Estimate:
    return estimate(
        model, **{"engine": "mlx", "weights": "mlx-4bit", "gpu": "m3 max 64gb", "prompt_length": 1000, "output_length": 24, **more}
    )


@pytest.mark.parametrize(
    ("model", "weights", "nbytes"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "mlx-8bit", 142_955_136),
        ("meta-llama/Llama-3.2-3B-Instruct", "mlx-4bit", 1_807_423_488),
        (LLAMA, "mlx-4bit", 4_517_404_672),
        ("Qwen/Qwen3-Coder-30B-A3B-Instruct", "mlx-4bit", 17_180_913_664),
    ],
)
def test_weights_are_the_published_size(model: str, weights: str, nbytes: int) -> None:
    """`storage_size` of exo's model cards of mlx-community's conversions (exo-explore/exo), to the byte."""
    assert mlx(model, weights=weights).quantities["weights"] == nbytes


# ---- growing caches -----------------------------------------------------------------------------------------------------
def stepwise(prompt: int, total: int, chunk: int) -> tuple[int, int]:
    """mlx-lm's loop and KVCache.update_and_fetch, token by token: the places after the prompt and at the end."""
    places = offset = after = 0
    passes = [chunk] * ((prompt - 1) // chunk) + [(prompt - 1) % chunk] + [1] * (total - prompt + 1)
    for tokens in passes:
        if tokens and offset + tokens > places:
            kept = places if offset % 256 == 0 else offset
            places = kept + (256 + tokens - 1) // 256 * 256
        offset += tokens
        after = places if offset == prompt else after
    return after, places


@given(st.integers(1, 6000), st.integers(0, 2000), st.integers(1, 3000))
def test_room_is_what_the_loop_makes(prompt: int, output: int, chunk: int) -> None:
    assert capacity(prompt, prompt + output, chunk) == stepwise(prompt, prompt + output, chunk)


@given(st.integers(1, 100_000), st.integers(0, 100_000))
def test_with_whole_steps_room_is_the_next_multiple(prompt: int, output: int) -> None:
    total = prompt + output
    assert capacity(prompt, total, 2048) == (-(-prompt // STEP) * STEP, -(-total // STEP) * STEP)


def cache(answer: Estimate, moment: Moment, kind: str = "full attention") -> int:
    return sum(item.nbytes for item in answer.ledger.items if item.path[:2] == ("kv cache", kind) and moment in item.alive)


def test_a_cache_grows_by_256_tokens() -> None:
    token = 2 * 32 * 8 * 128 * 2
    assert cache(mlx(), Moment.PREFILL) == 1024 * token
    assert cache(mlx(output_length=25), Moment.DECODE) == 1280 * token
    assert mlx().ledger.total("kv cache", "growth", "prefill") == 1024 * token // 32


@pytest.mark.parametrize(("kv", "bits"), [("mlx-8bit", 8.5), ("mlx-4bit", 4.5)])
def test_quantised_caches(kv: str, bits: float) -> None:
    """Groups of 64, each with a scale and a bias of 16 bits."""
    assert cache(mlx(kv_dtype=kv), Moment.DECODE) == 1024 * 2 * 32 * 8 * 128 * bits / 8


def test_windows_rotate() -> None:
    """gemma-3: 52 of 62 layers with a window of 1,024; in a prompt of 5,001 they hold 1,023 tokens and the last chunk's."""
    gemma = mlx("google/gemma-3-27b-it", prompt_length=5001, output_length=1000)
    token = 2 * 52 * 16 * 128 * 2
    assert cache(gemma, Moment.PREFILL, "window") == (1023 + 2048) * token
    assert cache(gemma, Moment.DECODE, "window") == 1024 * token


# ---- scores -------------------------------------------------------------------------------------------------------------
def test_no_scores_where_metals_kernel_runs() -> None:
    assert mlx(prompt_length=8000).ledger.total("activations", "scores") == 0


def test_scores_of_quantised_caches_and_wide_heads() -> None:
    """32 heads × 2,048 tokens × 7,999 keys in 16 bits; gemma-2's heads are 256 wide."""
    assert mlx(prompt_length=8000, kv_dtype="mlx-8bit").ledger.total("activations", "scores") == 32 * 2048 * 7999 * 2
    assert mlx("google/gemma-2-2b", prompt_length=4000).ledger.total("activations", "scores") == 8 * 2048 * 3999 * 2


# ---- unified memory, refusals ----------------------------------------------------------------------------------------------
def test_what_fits_is_the_working_set() -> None:
    answer = mlx("meta-llama/Llama-3.3-70B-Instruct", weights="mlx-8bit")
    assert answer.room == 64 * 2**30 * 74 // 100
    assert answer.fits is False
    assert any("working set" in remark for remark in answer.remarks)


@pytest.mark.parametrize(
    ("model", "more", "error", "message"),
    [
        (LLAMA, {"weights": "awq"}, BadInput, "weights 'awq'"),
        (LLAMA, {"kv_dtype": "q8_0"}, BadInput, "kv_dtype 'q8_0'"),
        (LLAMA, {"gpu": "rtx-4090"}, Unknown, "MLX on CUDA"),
        ("google/gemma-3-27b-it", {"kv_dtype": "mlx-8bit"}, BadInput, "RotatingKVCache Quantization NYI"),
        ("deepseek-ai/DeepSeek-V2-Lite", {}, Unknown, "deepseek_v2"),
        (LLAMA, {"gpu_count": 2}, Unknown, "gpu_count"),
        (LLAMA, {"prompt_length": 200_000}, BadInput, "context_length|prompt_length"),
    ],
)
def test_refusals(model: str, more: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mlx(model, **more)
