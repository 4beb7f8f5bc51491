"""`fix`: what a remedy saves is what an estimate says, and no cheaper set fits; its text, its JSON, its refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from harness import Run
from vramplan import BadInput, estimate
from vramplan.planner.fix import _joined, fix
from vramplan.planner.remedies import CLASSES, REMEDIES, of_task
from vramplan.planner.trying import Tries
from vramplan.scenario import scenario

LLAMA = "meta-llama/Llama-3.1-8B"
SMALL = "Qwen/Qwen2.5-0.5B"
FULL: dict[str, Any] = {"model": LLAMA, "task": "train", "method": "full", "gpu": "rtx-4090"}
CASES: list[dict[str, Any]] = [
    {"model": SMALL, "task": "train", "method": "full", "gpu_memory": "6GiB", "micro_batch": 4, "sequence_length": 512},
    {
        "model": SMALL,
        "task": "train",
        "method": "lora",
        "gpu_memory": "4GiB",
        "micro_batch": 6,
        "sequence_length": 512,
        "optimizer": "adamw",
    },
    {"model": LLAMA, "gpu": "rtx-4090", "context_length": 131072},
    {"model": LLAMA, "gpu": "rtx-3060", "engine": "llama.cpp", "weights": "Q8_0", "context_length": 32768},
]


def test_every_remedy_is_told_apart() -> None:
    names = [(one.task, one.name) for one in REMEDIES]
    assert len(names) == len(set(names))
    assert all(one.kind in CLASSES and one.gives_up for one in REMEDIES)


@pytest.mark.parametrize("given", CASES, ids=lambda given: f"{given['model']}-{given.get('engine', given.get('method', 'vllm'))}")
def test_the_set_fits_and_each_saving_is_an_estimates(given: dict[str, Any]) -> None:
    found = fix(given)
    asked = scenario(given)
    assert not found.asked.fits
    assert found.fitted is not None
    again = estimate(replace(asked, **_joined([step.change for step in found.smallest])))
    assert again.fits
    assert again.peak == found.fitted.peak
    for step in found.alone:
        alone = estimate(replace(asked, **step.change))
        assert (found.asked.peak[1] - alone.peak[1], alone.fits) == (step.saves, step.fits), step.remedy.name


@pytest.mark.parametrize("given", CASES[:2], ids=["full", "lora"])
def test_no_cheaper_set_fits(given: dict[str, Any]) -> None:
    """Every subset of the remedies up to the dearest class of the set, each as strong as it gets: none fits with fewer of that class."""
    found, asked = fix(given), scenario(given)
    tries = Tries(asked)
    dearest = max(CLASSES.index(step.remedy.kind) for step in found.smallest)
    of_dearest = sum(CLASSES.index(step.remedy.kind) == dearest for step in found.smallest)
    now = found.asked.scenario
    offered = [(one, [c for c in one.changes(now) if tries.answer(c)]) for one in of_task(asked.task) if CLASSES.index(one.kind) <= dearest]
    offered = [(one, changes) for one, changes in offered if changes]
    for taken in product((False, True), repeat=len(offered)):
        chosen = [pair for pair, used in zip(offered, taken, strict=True) if used]
        dear = sum(CLASSES.index(one.kind) == dearest for one, _ in chosen)
        if dear < of_dearest:
            assert not tries.fits(_joined([changes[-1] for _, changes in chosen])), [one.name for one, _ in chosen]


def test_full_training_of_eight_billion_on_24_gib_is_lora() -> None:
    found = fix(FULL)
    assert [step.remedy.name for step in found.smallest] == ["checkpointing", "LoRA"]
    saves = {step.remedy.name: step.saves for step in found.alone}
    assert saves["QLoRA"] > saves["LoRA"] > saves["8-bit optimizer"] > 0


def test_what_fits_needs_nothing() -> None:
    found = fix(FULL | {"method": "qlora", "checkpointing": "full"})
    assert found.smallest == ()
    assert found.fitted is found.asked


def test_what_nothing_fixes_comes_nearest() -> None:
    found = fix(FULL | {"model": "meta-llama/Llama-3.1-405B", "gpu": "rtx-3060"})
    assert found.fitted is None
    assert found.nearest is not None
    assert found.asked.headroom < found.nearest.headroom < 0  # type: ignore[operator]


def test_without_a_gpu_there_is_nothing_to_fit_into() -> None:
    with pytest.raises(BadInput, match="fix: name what it is to fit into"):
        fix(LLAMA)


def test_the_command(run: Run) -> None:
    wish = ("fix", LLAMA, "--gpu", "rtx-4090", "--task", "train", "--method", "full")
    out = run(*wish).out
    assert "Fits with: checkpointing (--checkpointing full); LoRA (--method lora)." in out
    data = json.loads(run(*wish, "--json").out)
    assert [step["remedy"] for step in data["smallest"]] == ["checkpointing", "LoRA"]
    assert data["plan"]["fits"] is True
    assert run("fix", LLAMA).status == 2
