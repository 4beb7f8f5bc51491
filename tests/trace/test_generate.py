"""`trace_generate`: what is kept in data/traced/generate.jsonl is what transformers' loop takes today, cache by cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vramplan import BadInput, Unknown, scenario

for extra in ("torch", "transformers", "peft", "bitsandbytes"):
    pytest.importorskip(extra)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROWS = [json.loads(line) for line in (Path(__file__).parents[2] / "data" / "traced" / "generate.jsonl").read_text().splitlines()]
SMALL = [row for row in ROWS if row["scenario"]["model"] == "meta-llama/Llama-3.2-1B" and row["scenario"]["sequences"] < 16]


def kind(row: dict[str, Any]) -> str:
    return str(row["scenario"].get("cache_implementation") or f"{row['scenario'].get('num_beams', 1)} beams")


@pytest.mark.parametrize("row", {kind(row): row for row in SMALL if not kind(row).startswith(("quanto", "hqq"))}.values(), ids=kind)
def test_the_rows_are_what_the_loop_takes(row: dict[str, Any]) -> None:
    from vramplan.trace import trace_generate

    start, end = trace_generate(scenario(row["scenario"]))
    peaks = [start.peak_of(moment="prefill").nbytes, start.peak_of(moment="first").nbytes, end.peak_of(moment="decode").nbytes]
    assert peaks == [row["prefill"], row["first"], row["decode"]]


def test_what_is_not_traced_is_refused() -> None:
    from vramplan.trace import trace_generate

    asked = {"model": "meta-llama/Llama-3.2-1B", "engine": "transformers"}
    with pytest.raises(Unknown, match="output_length 2"):
        trace_generate(scenario({**asked, "output_length": 2}))
    with pytest.raises(BadInput, match="task infer"):
        trace_generate(scenario({**asked, "task": "train"}))
