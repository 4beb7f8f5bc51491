"""The estimate of `generate` judged by transformers' own loop on fake tensors, prefill and decode each.

`data/traced/generate.jsonl` is made by `scripts/trace_generate.py` (its rows name the versions). Both sides count bytes that were asked
for; what the allocator does not cut off its blocks is left out. A quantised cache's tail of unpacked tokens is short in the trace.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from vramplan import estimate, scenario
from vramplan.ledger import Moment

ROWS = [json.loads(line) for line in (Path(__file__).parent.parent / "data" / "traced" / "generate.jsonl").read_text().splitlines()]


def name(row: dict[str, Any]) -> str:
    s = row["scenario"]
    parts = [s["model"].split("/")[-1], s["weights"], s["attention"], f"{s['sequences']}x{s['prompt_length']}+{s['output_length']}"]
    return "-".join([*parts, s.get("cache_implementation", "dynamic"), f"{s.get('num_beams', 1)}-beams", s.get("gpu", "")])


def errors(row: dict[str, Any]) -> dict[str, float]:
    """Signed errors of the prefill, of the decode's last step, and of the larger of both."""
    left_out = ("cuda context", "allocator"), ("kv cache", "residual")
    items = [i for i in estimate(scenario(row["scenario"])).ledger.items if i.path[0] not in left_out[0] and i.path[:2] != left_out[1]]
    ours = {m.value: sum(i.nbytes for i in items if m in i.alive) for m in (Moment.PREFILL, Moment.DECODE)}
    ours["peak"] = max(ours.values())
    return {moment: ours[moment] / row[moment] - 1 for moment in ours}


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_prefill_and_decode(row: dict[str, Any]) -> None:
    found = errors(row)
    assert abs(found["peak"]) <= 0.012, found
    assert all(abs(error) <= 0.015 for error in found.values()), found


def test_the_errors_together() -> None:
    found = [errors(row)["peak"] for row in ROWS]
    assert len(found) >= 60
    assert median(abs(error) for error in found) <= 0.0005
    assert sum(abs(error) <= 0.01 for error in found) >= 0.97 * len(found)
