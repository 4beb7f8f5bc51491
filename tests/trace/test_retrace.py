"""The traced steps that judge the estimate (`data/traced/steps.jsonl`), traced again: what is stored is what the trace says today.

The slow part takes a row of each of some models and recipes; `pytest -m retrace` takes them all. Figures are equal to the byte where the
versions are the row's. With others the peak may move, since a newer transformers may keep less: by no more than the estimate is allowed to.
"""

from __future__ import annotations

import json
import runpy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]
ROWS: list[dict[str, Any]] = [json.loads(line) for line in (ROOT / "data" / "traced" / "steps.jsonl").read_text().splitlines()]
KIND = ("method", "precision", "quantization", "checkpointing", "optimizer", "tower")
"""What makes a recipe another one than that of the next row."""
SOME = 14


def some() -> list[dict[str, Any]]:
    """The quickest rows, no two of one model or of one recipe."""
    taken: list[dict[str, Any]] = []
    seen: set[object] = set()
    for row in sorted(ROWS, key=lambda row: row["seconds"]):
        model, kind = row["scenario"]["model"], tuple(row["scenario"].get(key) for key in KIND)
        if len(taken) < SOME and not seen & {model, kind}:
            taken.append(row)
            seen |= {model, kind}
    return taken


def name(row: dict[str, Any]) -> str:
    return "-".join(str(value).rpartition("/")[2] for value in row["scenario"].values() if isinstance(value, str | int))


def compare(row: dict[str, Any]) -> None:
    """Trace `row` again. Raises AssertionError where a figure is another."""
    made = runpy.run_path(str(ROOT / "scripts" / "trace_matrix.py"))["figures"](row["scenario"])
    if all(version(package).partition("+")[0] == of.partition("+")[0] for package, of in row["versions"].items()):
        assert made == {key: row[key] for key in made}
    else:
        assert made["peak"] == pytest.approx(row["peak"], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("row", some(), ids=name)
def test_some_rows(row: dict[str, Any]) -> None:
    compare(row)


@pytest.mark.retrace
@pytest.mark.parametrize("row", ROWS, ids=name)
def test_every_row(row: dict[str, Any]) -> None:
    compare(row)
