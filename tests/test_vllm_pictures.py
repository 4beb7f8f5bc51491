"""The pictures of vLLM's profile run, by its own code for Kimi-VL and LLaVA-NeXT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vramplan import estimate
from vramplan.engines.vllm_pictures import profiled
from vramplan.engines.vllm_profile import kernels
from vramplan.scenario import scenario
from vramplan.sources import resolve

ROWS = [json.loads(line) for line in Path("data/measured/infer.jsonl").read_text().splitlines()]
LLAVA_NEXT: dict[str, Any] = {
    "model_type": "llava_next",
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
    },
    "text_config": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 32064, "max_position_embeddings": 4096,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "tokens", "pixels"),
    [
        ("moonshotai/Kimi-VL-A3B-Instruct", 33 * 33, (66 * 66, 3, 14, 14)),
        (LLAVA_NEXT, 24 * 24 + 48 * 49, (5, 3, 336, 336)),
        ("ibm-granite/granite-vision-3.3-2b", 27 * 27 + 270 * 28, (11, 3, 384, 384)),
    ],
)
def test_the_largest_picture(model: Any, tokens: int, pixels: tuple[int, ...]) -> None:
    """1,024 × 1,024 pixels shrink to 897 × 897 and are padded to 924; 672 × 672 has most tokens of five sizes, 3,840 × 384 of Granite."""
    picture, _ = profiled(resolve(model), kernels((0, 21)))
    assert picture is not None
    assert (picture.tokens, picture.pixels) == (tokens, pixels)


@pytest.mark.parametrize(("name", "error"), [("kimi-vl", 0.027), ("granite-visi", 0.01)])
def test_logged_peaks_with_them(name: str, error: float) -> None:
    """Kimi-VL's 2.92 and 2.85 GiB (were 3.7 % low without pixels), Granite Vision's 0.79."""
    rows = [row for row in ROWS if name in row["id"] and row["observed"]["quantity"] == "activation_peak"]
    assert rows
    for row in rows:
        found = estimate(scenario(row["scenario"])).quantities["activation_peak"]
        assert found == pytest.approx(row["observed"]["value"], rel=error)
