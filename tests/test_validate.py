"""`vramplan validate`: replayed measurements, their signed errors, refusals counted and not dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import Run
from vramplan import BadFile
from vramplan.measured.validate import Row, Summary, read, replay, summaries

LLAMA = "meta-llama/Llama-3.1-8B"
WEIGHTS = 16_060_522_496 + 131_072 * 128 * 2


def measurement(id: str, quantity: str, value: float, **given: object) -> dict[str, Any]:
    return {
        "id": id,
        "source": "here",
        "scenario": {"model": LLAMA, "engine": "vllm", **given},
        "observed": {"quantity": quantity, "value": value},
        "confidence": "high",
    }


ROWS = [
    measurement("equal", "weights", WEIGHTS),
    measurement("too little", "weights", WEIGHTS * 1.25),
    measurement("too much", "weights", WEIGHTS * 0.8),
    measurement("right", "fits", 1, gpu="h100", context_length=8192),
    measurement("wrong", "fits", 1, gpu="rtx-3060", context_length=8192),
    measurement("refused", "weights", 1, tensor_parallel=3),
    measurement("no such", "compute_buffer", 1),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    return path


def test_json_is_what_the_interface_says(file: Path, run: Run) -> None:
    done = run("validate", str(file), "--json")
    data = json.loads(done.out)
    assert done.status == 0
    rows = {row["id"]: row for row in data["rows"]}
    assert [row["error"] for row in data["rows"][:5]] == pytest.approx([0, -0.2, 0.25, 0, 1])
    assert rows["equal"] == {"id": "equal", "predicted": WEIGHTS, "observed": WEIGHTS, "error": 0, "refused": None}
    assert (rows["refused"]["predicted"], rows["refused"]["error"]) == (None, None)
    assert "tensor_parallel 3" in rows["refused"]["refused"]
    assert rows["no such"]["refused"] == "the estimate has no compute_buffer"
    assert data["groups"]["vllm weights"] == {
        "n": 4,
        "refused": 1,
        "median_abs": pytest.approx(0.2),
        "p90_abs": pytest.approx(0.25),
        "median_signed": 0,
        "under": 1,
    }
    assert data["groups"]["all"]["n"] == len(ROWS)
    assert data["groups"]["all"]["refused"] == 2


def test_text_shows_groups_the_worst_and_the_refused(file: Path, run: Run) -> None:
    out = run("validate", str(file), "--worst", "2").out
    groups, worst, refused = out.split("\n\n")
    assert groups.splitlines()[-1].split()[:3] == ["all", "7", "2"]
    assert [line.split()[0] for line in worst.splitlines()[2:]] == ["wrong", "too"]
    assert "+25.00 %" in worst
    assert "the estimate has no compute_buffer" in refused


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"scenario": {}, "observed": {}}',
        '{"scenario": {}, "observed": {"quantity": "weights", "value": "1"}}',
        '{"scenario": 1, "observed": {"quantity": "weights", "value": 1}}',
        '{"scenario": {}, "observed": {"quantity": 1, "value": 1}}',
    ],
)
def test_a_line_that_is_no_measurement_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(ROWS[0])}\n{line}\n")
    with pytest.raises(BadFile, match=r"rows\.jsonl line 2"):
        list(read(path))


def test_a_scenario_that_is_wrong_is_a_refused_row() -> None:
    row = replay(measurement("x", "weights", 1, contxt=1))
    assert row.predicted is None
    assert "did you mean 'context_length'" in str(row.refused)


def test_summaries_of_nothing_and_of_refusals() -> None:
    empty = Summary.of([])
    assert (empty.n, empty.median_abs, empty.under) == (0, None, 0)
    refused = Row(id="a", group="g", quantity="weights", confidence="", observed=1, predicted=None, refused="no")
    assert summaries([refused])["g"] == Summary(n=1, refused=1, median_abs=None, p90_abs=None, median_signed=None, under=0)
    assert Row(id="a", group="g", quantity="weights", confidence="", observed=0, predicted=1, refused=None).error is None


def test_carried_measurements_are_predicted_as_the_accuracy_page_says() -> None:
    """A few rows of each engine, bounds that only shrink: docs/accuracy.md has all of them."""
    path = Path(__file__).parent.parent / "data" / "measured" / "infer.jsonl"
    found = summaries(replay(row) for row in read(path))
    assert found["llama.cpp kv_cache"].median_abs == pytest.approx(0, abs=1e-4)
    assert found["transformers peak_allocated"].median_abs < 0.025  # type: ignore[operator]
    assert found["vllm kv_tokens"].median_abs < 0.002  # type: ignore[operator]
    assert found["vllm kv_cache"].under == 0
