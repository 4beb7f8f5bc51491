"""The training estimate judged by real steps: transformers' own models, PEFT and bitsandbytes on fake tensors, traced op by op.

`data/traced/steps.jsonl` is made by `scripts/trace_matrix.py` (its rows name the versions). Both sides count bytes that were asked for,
with the workspaces that kernels take.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from vramplan import Unknown, estimate, scenario
from vramplan.ledger import Moment

ROWS = [json.loads(line) for line in (Path(__file__).parent.parent / "data" / "traced" / "steps.jsonl").read_text().splitlines()]


def name(row: dict[str, Any]) -> str:
    s = row["scenario"]
    parts = (
        s["model"].split("/")[-1],
        s["method"],
        s["precision"],
        f"{s['micro_batch']}x{s['sequence_length']}",
        s["attention"],
        s["optimizer"],
    )
    seen = f"-{s['images']}-images-{s['tower']}" if s.get("images") else ""
    return "-".join(parts) + seen + ("-checkpointed" if s.get("checkpointing") == "full" else "")


def compared(row: dict[str, Any]) -> tuple[int, int]:
    """Our peak and the traced one."""
    return estimate(scenario(row["scenario"])).facts["peak_allocated"], row["peak"]


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_peak(row: dict[str, Any]) -> None:
    ours, traced = compared(row)
    assert abs(ours / traced - 1) <= 0.01, f"{ours:,} against {traced:,}: {ours / traced - 1:+.2%}; {row['categories']}"


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_moment(row: dict[str, Any]) -> None:
    """Where the trace is within 1 % of its peak at one moment only, ours is the same; the loss is part of the trace's backward."""
    answer = estimate(scenario(row["scenario"]))
    ours, _ = answer.peak
    traced = Moment.LOSS if row["where"] == "loss" else Moment(row["moment"])
    if ours is not traced:
        assert answer.ledger.at(traced) >= 0.99 * answer.ledger.at(ours), (ours, traced)


def test_the_errors_together() -> None:
    errors = [ours / traced - 1 for ours, traced in map(compared, ROWS)]
    assert len(errors) >= 150
    assert median(abs(error) for error in errors) <= 0.0005
    assert sum(abs(error) <= 0.01 for error in errors) >= 0.95 * len(errors)


def test_what_is_not_estimated_is_refused() -> None:
    for key, value in (("checkpointing", "selective"), ("gpu_count", 2), ("method", "ia3"), ("engine", "megatron")):
        with pytest.raises(Unknown):
            estimate("meta-llama/Llama-3.2-1B", task="train", **{key: value})
