"""Embedding and ranking with transformers: its own classes traced on fake tensors, what follows from batch and length, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vramplan import BadInput, Estimate, Unknown, estimate

TRACED = [json.loads(line) for line in (Path(__file__).parent.parent / "data" / "traced" / "pooling.jsonl").read_text().splitlines()]
BGE = "BAAI/bge-large-en-v1.5"


def pooled(model: str = BGE, **more: Any) -> Estimate:
    return estimate(model, **{"engine": "transformers", "gpu": "a100-sxm-80gb", **more})


@pytest.mark.parametrize("row", TRACED, ids=lambda row: f"{row['scenario']['model']}-{row['scenario']['weights']}")
def test_its_own_class_takes_as_much(row: dict[str, Any]) -> None:
    """Within 0.3 MB (the mask of padding, ids) or 0.1 %; 0.7 % where there are masks of windows or of eager attention: the trace makes
    them for every text, as values do not tell it that nothing is padded.
    """
    answer = pooled(**row["scenario"])
    traced = answer.quantities["peak_allocated"] - answer.ledger.total("allocator")
    masks = row["scenario"].get("attention") == "eager" or "ModernBERT" in row["scenario"]["model"]
    assert traced == pytest.approx(row["peak"], rel=0.007 if masks else 0.001, abs=300_000)


def test_batch_times_length_decides() -> None:
    one, more, longer = (
        pooled(sequences=n, prompt_length=length).ledger.total("activations") for n, length in ((8, 128), (32, 128), (8, 512))
    )
    assert more == longer == pytest.approx(4 * one, rel=0.01)
    assert pooled(sequences=8, prompt_length=512, attention="eager").ledger.total("activations") > longer


def test_an_encoder_pools_unasked_and_a_decoder_when_asked() -> None:
    assert pooled().quantities["kv_cache"] == 0
    assert pooled().scenario.runner == "pooling"
    asked, not_asked = (pooled("Qwen/Qwen3-Embedding-0.6B", prompt_length=512, runner=runner) for runner in ("pooling", None))
    assert asked.scenario.runner == "pooling"
    assert not_asked.scenario.runner is None
    assert asked.quantities["kv_cache"] == 512 * 28 * 2 * 8 * 128 * 2


def test_a_head_is_left_out_unless_it_classifies() -> None:
    large = pooled("mistralai/Mistral-7B-v0.1", runner="pooling")
    assert large.ledger.total("weights", "head") == 0
    assert large.quantities["parameters"] == 7_110_660_096
    assert pooled("BAAI/bge-reranker-large").quantities["parameters"] == 559_891_457


def test_vllm_samples_nothing_where_it_pools() -> None:
    """XLM-R's 250,002 logits for 256 sequences are no part of its profile run."""
    answer = estimate("BAAI/bge-reranker-large", engine="vllm", gpu="rtx-4090", sequences=256)
    assert answer.ledger.total("activations", "sampler") == answer.quantities["kv_cache"] == 0
    generating, embedding = (
        estimate("Qwen/Qwen3-Embedding-0.6B", engine="vllm", gpu="h100-sxm-80gb", runner=runner).facts["activation_peak"]
        for runner in (None, "pooling")
    )
    assert embedding < generating / 2


@pytest.mark.parametrize(
    ("model", "more", "error", "message"),
    [
        (BGE, {"output_length": 5}, BadInput, "output_length 5"),
        (BGE, {"prompt_length": 1024}, BadInput, "512 tokens"),
        ("Qwen/Qwen3-Embedding-0.6B", {"engine": "tensorrt-llm", "runner": "pooling"}, Unknown, "runner"),
        ("Qwen/Qwen3-Embedding-0.6B", {"runner": "embed"}, BadInput, "generate, pooling"),
    ],
)
def test_refusals(model: str, more: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pooled(model, **more)
