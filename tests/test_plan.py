"""`plan`: every plan is estimated again and fits, keeps what is fixed, and no point of the grid is better by its own order."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness import Run
from vramplan import BadInput, estimate
from vramplan.planner.held import held
from vramplan.planner.search import LIKELY, Plan, _spaces, plan
from vramplan.planner.trying import Tries
from vramplan.scenario import scenario

LLAMA = "meta-llama/Meta-Llama-3-8B"
SMALL = "Qwen/Qwen2.5-0.5B"
GRIDS: list[tuple[dict[str, Any], int | None]] = [
    ({"model": SMALL, "task": "train", "gpu_memory": "5GiB", "gpu": "rtx-3060", "sequence_length": 512, "offload": ["activations"]}, 4),
    ({"model": SMALL, "task": "train", "gpu": "rtx-3060", "sequence_length": 1024, "checkpointing": "full", "method": "full"}, 4),
    ({"model": SMALL, "gpu": "gtx-1060-6gb", "gpu_memory": "3GiB", "engine": "llama.cpp", "context_length": 8192, "gpu_layers": 99}, None),
    ({"model": LLAMA, "gpu": "rtx-4090", "engine": "vllm", "context_length": 8192, "sequences": 5}, None),
]


@pytest.mark.parametrize(("given", "batch"), GRIDS)
def test_offered_plans_fit_and_none_of_the_grid_is_better(given: dict[str, Any], batch: int | None) -> None:
    wish = scenario(given)
    found = plan(wish, global_batch=batch)
    assert found.plans
    for one in found.plans:
        again = estimate(one.scenario)
        assert again.fits
        assert one.likelihood >= LIKELY
        assert (again.peak, again.room) == (one.answer.peak, one.answer.room)
        kept = [key for key in given if key != "model"]
        assert all(getattr(one.scenario, key) == getattr(wish, key) for key in kept)
    tries = Tries(wish)
    users = wish.sequences or 1
    for space in _spaces(tries, batch):
        for quality in space.quality:
            for pace in space.pace:
                for size in pace.sizes:
                    answer = tries.answer({**quality.change, **pace.change, **size})
                    if answer is None:
                        continue
                    gives_up = (*quality.gives_up, *pace.gives_up)
                    point = Plan(answer=answer, users=users, cost=quality.cost, hosted=pace.hosted, gives_up=gives_up)
                    if point.margin >= LIKELY and point.fits and point.likelihood >= LIKELY:
                        assert found.plans[0].order[:2] <= point.order[:2]
                        assert found.plans[0].order[:3] <= point.order[:3]


def test_a_step_is_of_the_batch_that_was_asked_for() -> None:
    found = plan(LLAMA, task="train", gpu="rtx-4090", global_batch=24)
    for one in found.plans:
        assert one.scenario.micro_batch * one.scenario.gradient_accumulation == 24  # type: ignore[operator]
    assert [found.plans[0].scenario.method, found.plans[-1].scenario.method] == ["lora", "qlora"]


def test_several_gpus_share_the_batch() -> None:
    found = plan(SMALL, task="train", gpu="rtx-4090", gpu_count=4, global_batch=32, sequence_length=256)
    assert found.plans
    for one in found.plans:
        assert 4 * one.scenario.micro_batch * one.scenario.gradient_accumulation == 32  # type: ignore[operator]


def test_all_users_are_held_at_once() -> None:
    found = plan("Qwen/Qwen3-32B", gpu="h200", sequences=30, context_length=16384)
    assert found.plans
    for one in found.plans:
        tokens = one.scenario.context_length if one.scenario.engine == "llama.cpp" else 16384
        assert held(one.answer) >= 30
        assert tokens == (30 * 16384 if one.scenario.engine == "llama.cpp" else 16384)
    assert found.plans == tuple(sorted(found.plans, key=lambda one: one.order))


def test_a_wish_that_nothing_meets_says_what_comes_nearest() -> None:
    found = plan("meta-llama/Llama-3.1-405B", task="train", gpu="rtx-3060")
    assert found.plans == ()
    assert found.nearest is not None
    assert found.nearest.headroom < 0
    assert found.nearest.scenario.method == "qlora"


def test_interrupted_it_answers_with_the_best_so_far() -> None:
    def stop(made: int) -> None:
        if made > 60:
            raise KeyboardInterrupt

    found = plan(LLAMA, task="train", gpu="rtx-4090", progress=stop)
    whole = plan(LLAMA, task="train", gpu="rtx-4090")
    assert (found.whole, whole.whole) == (False, True)
    assert found.made < whole.made
    assert found.plans


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, "plan: name what it is to fit into"),
        ({"gpu": "rtx-4090", "task": "train", "gpu_count": 2, "global_batch": 7}, "must be a multiple of the 2 GPUs"),
        ({"gpu": "rtx-4090", "task": "train", "micro_batch": 3, "global_batch": 8}, "is not micro_batch × gradient_accumulation"),
        ({"gpu": "rtx-4090", "global_batch": 7}, "--global-batch: is for task train"),
        ({"gpu": "rtx-4090", "sequences": 3}, "name --context"),
        ({"gpu": "rtx-4090", "sequences": 0}, "sequences 0"),
    ],
)
def test_wishes_that_contradict_themselves(given: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        plan(LLAMA, **given)


def test_most_of_what_is_searched_is_decided_without_an_estimate() -> None:
    found = plan(LLAMA, gpu="rtx-4090", context_length=8192)
    assert found.points > 10 * found.made


def test_the_command(run: Run) -> None:
    wish = ("plan", LLAMA, "--task", "train", "--gpu", "rtx-4090")
    lines = run(*wish).out.splitlines()
    assert lines[0] == "meta-llama/Meta-Llama-3-8B on GeForce RTX 4090: 2 plans, best first."
    assert "--method lora" in "\n".join(lines)
    data = json.loads(run(*wish, "--json").out)
    assert set(data["plans"][0]) >= {"scenario", "quantities", "fits", "headroom", "likelihood", "speed", "gives_up"}
    assert run("plan", LLAMA, "--gpu", "no-such-card").status == 2
    assert "Nothing meets the wish" in run("plan", "meta-llama/Llama-3.1-405B", "--gpu", "rtx-3060", "--task", "train").out
