"""The rules of the field: what people say about memory (`data/claims.toml`), held against our figures, and the arithmetic of the papers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vramplan import estimate
from vramplan.ledger import Moment
from vramplan.scenario import scenario
from vramplan.units import parse_size

ROOT = Path(__file__).parent.parent
EXACT = {"weights", "static", "cache"}
"""Quantities that are counts times bytes: ours is held to what is written within its last digit, 0.05 %; peaks within 1.5 %."""


def script() -> ModuleType:
    """scripts/claims.py, which makes the page."""
    spec = importlib.util.spec_from_file_location("claims", ROOT / "scripts" / "claims.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["claims"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


claims = script()
CLAIMS, RECIPES = claims.read(ROOT / "data" / "claims.toml")
CASES = [pytest.param(case, id=f"{number}-{case.what}") for number, claim in enumerate(CLAIMS, 1) for case in claim.cases]


@pytest.mark.parametrize("case", CASES)
def test_our_figure(case: Any) -> None:
    measured = case.measure()
    if case.quantity == "fits":
        assert bool(measured) is case.ours
    else:
        assert measured == pytest.approx(parse_size(case.ours), rel=0.0005 if case.quantity in EXACT else 0.015)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.says)
def test_verdict(claim: Any) -> None:
    """It is what the cases say, and each says something: a range's end, or whether it fits."""
    assert all(case.claimed != ("", "") for case in claim.cases)
    assert claims.verdict([case.holds(case.measure()) for case in claim.cases]) == claim.verdict
    assert claim.why.strip()
    assert claim.who


def test_the_page_is_made_of_them() -> None:
    text = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
    for number, claim in enumerate(CLAIMS, 1):
        assert f"\n### {number}. {claim.says}\n\n**{claims.SAID[claim.verdict]}.**" in text


# ---- bytes per parameter -----------------------------------------------------------------
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_bytes_per_parameter(recipe: Any) -> None:
    """Exact but for what is not proportional: step counters (512 B a tensor), 8-bit scales, adapters."""
    answer = estimate(scenario(recipe.scenario))
    n = answer.quantities["parameters"]
    assert claims.static(answer) / n == pytest.approx(recipe.each, abs=0.005)
    assert answer.ledger.total("optimizer step", moment=Moment.STEP) / n == pytest.approx(recipe.step, abs=0.005)


@pytest.mark.parametrize(
    ("each", "keys"),
    [
        (8, {"precision": "bf16"}),
        (12, {"precision": "bf16", "optimizer": "fused-adam"}),
        (16, {"precision": "fp32"}),
        (16, {"precision": "bf16-mixed"}),
        (16, {"precision": "bf16-master"}),
    ],
)
def test_zeros_sixteen_bytes(each: int, keys: dict[str, str]) -> None:
    """2 + 2 + 12 with fp32 weights and moments beside fp16 ones (Rajbhandari et al. 2020, arXiv:1910.02054, section 3.1): 16 Ψ.

    So does `bf16-master`; fp32 weights, autocast or not, make 16 of 4 + 4 + 8; bf16 with moments in fp32 12, with moments in bf16 8.
    """
    answer = estimate("meta-llama/Llama-2-7b-hf", task="train", sequence_length=512, **{"optimizer": "adamw"} | keys)
    assert claims.static(answer) == each * 6_738_415_616
