"""The likelihood that an estimate fits: by hand, in order, and against recorded facts of what fitted and what ran out of memory."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramplan import Estimate, VramplanError, estimate
from vramplan.likelihood import LEANS, kinds, likelihood
from vramplan.measured.validate import read
from vramplan.scenario import scenario

MEASURED = Path(__file__).parent.parent / "data" / "measured"


def test_every_kind_has_its_rows_and_its_quantiles_in_order() -> None:
    for name, kind in kinds().items():
        assert kind["n"] >= 1
        assert len(kind["errors"]) == 21
        assert kind["errors"] == sorted(kind["errors"]), name


def test_it_is_the_rule_of_succession_far_from_every_error() -> None:
    """With twice the room all n rows were fine: (n + 1) / (n + 2), that of the kind and that of its task weighed n to LEANS."""
    own, whole = kinds()["train litgpt one"]["n"], kinds()["train one"]["n"]
    expected = (own * (own + 1) / (own + 2) + LEANS * (whole + 1) / (whole + 2)) / (own + LEANS)
    assert likelihood(50, 100, task="train", engine="litgpt", several=False) == pytest.approx(expected, abs=5e-4)
    nothing = (own / (own + 2) + LEANS / (whole + 2)) / (own + LEANS)
    assert likelihood(300, 100, task="train", engine="litgpt", several=False) == pytest.approx(nothing, abs=5e-4)


def test_an_engine_without_measurements_is_answered_by_its_task() -> None:
    n = kinds()["infer one"]["n"]
    assert likelihood(1, 100, task="infer", engine="exllamav3", several=False) == pytest.approx((n + 1) / (n + 2), abs=5e-4)


@given(st.integers(1, 10**12), st.integers(0, 10**11), st.sampled_from(sorted(kinds())))
def test_more_need_is_never_likelier(need: int, more: int, name: str) -> None:
    task, *engine, gpus = name.split()
    kind: dict[str, Any] = {"task": task, "engine": engine[0] if engine else "none", "several": gpus == "several"}
    assert 0 < likelihood(need + more, 10**12, **kind) <= likelihood(need, 10**12, **kind) < 1


def test_an_answer_carries_it() -> None:
    answer = estimate("meta-llama/Llama-3.1-8B", gpu="h100", gpu_memory="80GiB", context_length=8192)
    assert answer.likelihood is not None
    assert answer.to_dict()["likelihood"] == answer.likelihood > 0.9
    assert estimate("meta-llama/Llama-3.1-8B").likelihood is None
    assert estimate("meta-llama/Llama-3.1-70B", gpu="rtx-4090").likelihood < 0.1  # type: ignore[operator]


@cache
def facts() -> list[tuple[str, bool, Estimate]]:
    """What is known to fit or not to, and our answer, of what we estimate."""
    found = []
    for name in ("train_fits.jsonl", "infer.jsonl"):
        for row in read(MEASURED / name):
            if row["observed"]["quantity"] == "fits":
                with suppress(VramplanError):
                    found.append((row["id"], bool(row["observed"]["value"]), estimate(scenario(row["scenario"]))))
    return found


def test_what_ran_out_of_memory_was_not_called_likely_to_fit() -> None:
    surprises = {id for id, fitted, answer in facts() if not fitted and answer.fits and (answer.likelihood or 0) > 0.9}
    assert surprises == set()


def test_verdicts_of_which_it_is_sure_are_right() -> None:
    """Of the facts of which it is at least nine in ten sure."""
    sure = [(id, fitted, answer) for id, fitted, answer in facts() if not 0.1 < (answer.likelihood or 0) < 0.9]
    wrong = {id for id, fitted, answer in sure if fitted != ((answer.likelihood or 0) >= 0.9)}
    assert len(sure) >= 16
    assert wrong == set()
