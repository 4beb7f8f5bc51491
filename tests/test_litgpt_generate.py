"""LitGPT's generate: its own model traced on fake tensors, its published table, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vramplan import BadInput, Estimate, Unknown, estimate
from vramplan.ledger import Moment

DATA = Path(__file__).parent.parent / "data"
TRACED = [json.loads(line) for line in (DATA / "traced" / "litgpt_generate.jsonl").read_text().splitlines()]


def litgpt(model: str = "meta-llama/Llama-3.2-1B", **more: Any) -> Estimate:
    return estimate(model, **{"engine": "litgpt", "gpu": "a100-sxm-40gb", "prompt_length": 512, "context_length": 768, **more})


@pytest.mark.parametrize("row", TRACED, ids=lambda row: f"{row['scenario']['model']}-{row['scenario']['prompt_length']}")
def test_its_own_model_takes_as_much(row: dict[str, Any]) -> None:
    """Within 1 MB: context and cuBLAS's workspace, and blocks that torch does not split, are not traced."""
    answer = litgpt(**row["scenario"], gpu="a100-sxm-80gb")
    beside = sum(answer.ledger.total(*path) for path in (("cuda context",), ("workspace",), ("allocator",)))
    for moment in ("prefill", "decode"):
        assert answer.ledger.at(Moment(moment)) - beside == pytest.approx(row[moment], abs=1_000_000, rel=0)


@pytest.mark.parametrize(("weights", "printed"), [("fp32", 28.95), ("bf16", 14.50), ("nf4", 5.72), ("nf4-double", 5.38), ("int8", 8.7)])
def test_its_own_table(weights: str, printed: float) -> None:
    """LitGPT tutorials/quantize.md at 0.5.13: falcon-7b, 256 new tokens, max_memory_allocated in decimal GB."""
    answer = litgpt("tiiuae/falcon-7b", weights=weights, prompt_length=10, context_length=266)
    assert answer.quantities["peak_allocated"] / 1e9 == pytest.approx(printed, rel=0.003)


def test_the_cache_and_the_mask_are_made_for_every_position() -> None:
    answer = litgpt(prompt_length=100, context_length=4096)
    assert answer.ledger.total("buffers", "mask") == 4096 * 4096
    assert answer.quantities["kv_cache"] == 2 * 16 * 8 * 64 * 2 * 4096


@pytest.mark.parametrize(
    ("model", "more", "error", "message"),
    [
        ("mistralai/Mixtral-8x7B-v0.1", {}, Unknown, "mixtures of experts"),
        ("meta-llama/Llama-3.2-1B", {"weights": "awq"}, BadInput, "weights 'awq'"),
        ("meta-llama/Llama-3.2-1B", {"kv_dtype": "fp8"}, BadInput, "kv_dtype 'fp8'"),
        ("meta-llama/Llama-3.2-1B", {"kv_dtype": "fp32"}, BadInput, "dtype of its precision"),
        ("meta-llama/Llama-3.2-1B", {"context_length": 200_000}, BadInput, "context_length"),
        ("meta-llama/Llama-3.2-1B", {"tensor_parallel": 2}, Unknown, "tensor_parallel"),
    ],
)
def test_refusals(model: str, more: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        litgpt(model, **more)
