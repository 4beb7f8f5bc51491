"""Our answers against numbers that others published or logged: `tests/published/*.toml`, which says what each tolerance stands for."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from vramplan import estimate, inspect
from vramplan.scenario import scenario
from vramplan.units import parse_size


def cases() -> Iterator[Any]:
    """One parameter set for each expected quantity of each case of each file."""
    for path in sorted((Path(__file__).parent / "published").glob("*.toml")):
        file = tomllib.loads(path.read_text(encoding="utf-8"))
        for number, case in enumerate(file["case"], 1):
            case["source"] = case.get("source") or file["source"]
            case["scenario"] = file.get("scenario", {}) | case["scenario"]
            assert case["source"]
            assert case["why"]
            for quantity, expected in case["expected"].items():
                yield pytest.param(case, quantity, expected, id=f"{path.stem}-{number}-{case['scenario']['model']}-{quantity}")


def answer(given: dict[str, Any], quantity: str) -> float:
    """Our figure for `quantity`: bytes, or a count."""
    given = dict(given)
    if quantity == "cache":
        return inspect(given["model"]).cache_nbytes(given["tokens"])
    printed = given.pop("printed_tokens", 0)
    made = estimate(scenario(given))
    request = made.ledger.total("kv cache")
    if quantity == "concurrency":
        return printed * made.quantities["kv_bytes_per_token"] / request
    return request if quantity == "request" else made.quantities[quantity]


def number(value: str | float) -> float:
    """A size in bytes; a text without a unit, or a number, is a count."""
    if isinstance(value, str):
        figure, _, unit = value.partition(" ")
        return float(figure) * parse_size(f"1 {unit or 'B'}")
    return value


@pytest.mark.parametrize(("case", "quantity", "expected"), list(cases()))
def test_published(case: dict[str, Any], quantity: str, expected: str | float) -> None:
    ours, theirs = answer(case["scenario"], quantity), number(expected)
    tolerance = number(case["tolerance"]) if isinstance(case["tolerance"], str) else case["tolerance"] * theirs
    error = f"{quantity}: {ours:,.2f} against {theirs:,.2f}, {100 * (ours / theirs - 1):+.3f} %, off by {(ours - theirs) / 2**30:+.4f} GiB"
    assert abs(ours - theirs) <= tolerance, f"{error}; allowed {case['tolerance']}: {case['why']} ({case['source']})"
