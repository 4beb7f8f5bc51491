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
    seen = f"-{s['images']}-images-{s.get('tower', 'trained')}" if s.get("images") else ""
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


TRACED = {
    "weights": ("weights",),
    "gradients": ("gradients",),
    "optimizer states": ("optimizer states",),
    "saved activations": ("saved activations", "cast weights", "inputs"),
    "temporaries": ("temporaries", "recomputed activations"),
    "workspace": ("workspace",),
}
"""Category -> those of the trace that it holds."""
OURS = {"activations": "temporaries", "optimizer step": "temporaries"}
"""Line of our ledger -> its category, where it is called otherwise."""
SLACK = 0.002
"""Of the peak: below this a category is next to nothing."""


def shares(row: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Category -> our bytes and the traced ones, at the moment of the traced peak."""
    ledger = estimate(scenario(row["scenario"])).ledger
    moment = Moment.LOSS if row["where"] == "loss" else Moment(row["moment"])
    ours = dict.fromkeys(TRACED, 0)
    for item in ledger.items:
        category = OURS.get(item.path[0], item.path[0])
        if moment in item.alive and category in ours:
            ours[category] += item.nbytes
    return {category: (ours[category], sum(row["categories"].get(name, 0) for name in names)) for category, names in TRACED.items()}


def agrees(row: dict[str, Any], ours: int, traced: int) -> bool:
    return abs(ours - traced) <= max(0.02 * traced, SLACK * row["peak"])


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_categories(row: dict[str, Any]) -> None:
    """Each within 2 %, activations and gradients together: those are told apart in `test_activations_told_apart`."""
    made = ("gradients", "saved activations", "temporaries")
    found = shares(row)
    together = [sum(found[category][side] for category in made) for side in (0, 1)]
    assert agrees(row, *together), found
    assert all(agrees(row, *pair) for category, pair in found.items() if category not in made), found


ACROSS = {
    "granite-3.3-2b-instruct-full-bf16-2x2048-sdpa-adamw-fused-checkpointed": "a tied matrix's first gradient is a temporary of the trace",
    "mamba-130m-hf-full-bf16-1x64-eager-adamw-fused": "a tied matrix's first gradient is a temporary of the trace",
    "Mistral-7B-Instruct-v0.3-qlora-bf16-mixed-1x1024-sdpa-adamw-fused": "what the loss keeps is a temporary of ours in its forward pass",
    "Mistral-7B-Instruct-v0.3-dora-bf16-1x1024-sdpa-adamw-fused-checkpointed": "one tensor of DoRA's, 224 MiB, is a temporary of ours",
    "llava-1.5-7b-hf-full-bf16-2x1024-sdpa-adamw-fused-1-images-trained": "what is freed of a layer is taken off our temporaries",
}
"""Rows in which a tensor is of one category here and of another there, and which one."""


def test_activations_told_apart() -> None:
    """Saved activations, temporaries and gradients, each by itself within 2 %, in all other rows."""
    assert {name(row) for row in ROWS if not all(agrees(row, *pair) for pair in shares(row).values())} <= set(ACROSS)


def test_the_errors_together() -> None:
    errors = [ours / traced - 1 for ours, traced in map(compared, ROWS)]
    assert len(errors) >= 150
    assert median(abs(error) for error in errors) <= 0.0005
    assert sum(abs(error) <= 0.01 for error in errors) >= 0.95 * len(errors)


def test_what_is_not_estimated_is_refused() -> None:
    for key, value in (("checkpointing", "selective"), ("tensor_parallel", 2), ("method", "ia3")):
        with pytest.raises(Unknown):
            estimate("meta-llama/Llama-3.2-1B", task="train", **{key: value})
