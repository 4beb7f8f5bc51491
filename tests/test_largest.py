"""`max`: what it finds fits, one more does not, and nothing below was skipped; its table, its JSON and its refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import Run
from vramplan import BadInput, estimate
from vramplan.bisection import most, most_twice, until
from vramplan.planner.held import for_users, held
from vramplan.planner.largest import frontier, maximum
from vramplan.scenario import scenario

LLAMA = "meta-llama/Llama-3.1-8B"
SMALL = "Qwen/Qwen2.5-0.5B"
TRAIN: dict[str, Any] = {"task": "train", "gpu": "rtx-4090", "method": "qlora", "checkpointing": "full", "sequence_length": 2048}
CASES: list[tuple[str, str, dict[str, Any], str]] = [
    (LLAMA, "context", {"gpu": "rtx-4090"}, "context_length"),
    (LLAMA, "context", {"gpu": "rtx-4090", "engine": "llama.cpp", "weights": "Q4_K_M"}, "context_length"),
    (LLAMA, "concurrency", {"gpu": "rtx-4090", "engine": "transformers", "context_length": 1000}, "sequences"),
    (LLAMA, "batch", TRAIN, "micro_batch"),
    (SMALL, "batch", {"task": "train", "gpu": "rtx-3060", "sequence_length": 512}, "micro_batch"),
    (SMALL, "context", {"task": "train", "gpu": "rtx-3060", "micro_batch": 3}, "sequence_length"),
]


@given(st.integers(-1, 300), st.integers(-1, 300), st.integers(0, 300))
def test_bisection_finds_the_last_that_holds(last: int, cheap: int, limit: int) -> None:
    whole, quick = min(last, cheap), cheap
    asked: list[int] = []

    def holds(n: int, full: bool) -> bool:
        asked.append(n)
        return n <= (whole if full else quick)

    assert most(lambda n: n <= last, limit) == min(last, limit)
    assert most_twice(holds, limit) == min(whole, limit)
    assert not asked or max(asked) <= limit


def test_until_doubles() -> None:
    assert [until(lambda n: n < 10, start, 1000) for start in (1, 3, 10, 999)] == [16, 12, 10, 999]
    assert until(lambda n: True, 3, 100) == 100


@pytest.mark.parametrize(("model", "of", "given", "key"), CASES)
def test_it_fits_and_one_more_does_not(model: str, of: str, given: dict[str, Any], key: str) -> None:
    found = maximum(model, of, **given)
    assert found.value is not None
    assert found.key == key
    assert estimate(model, **{**given, key: found.value}).fits
    assert not estimate(model, **{**given, key: found.value + 1}).fits
    assert "missing" in found.beyond or "allocator" in found.beyond


def test_the_rank_is_exact_too() -> None:
    found = maximum(SMALL, "rank", task="train", gpu="rtx-3060", gpu_memory="4GiB", method="lora", sequence_length=256)
    lora = {"task": "train", "gpu": "rtx-3060", "gpu_memory": "4GiB", "method": "lora", "sequence_length": 256}
    assert found.value is not None
    assert estimate(SMALL, **lora, lora={"rank": found.value}).fits
    assert not estimate(SMALL, **lora, lora={"rank": found.value + 1}).fits


@settings(max_examples=6, deadline=None)
@given(st.integers(20_000, 32_000), st.sampled_from(["vllm", "sglang", "llama.cpp"]))
def test_users_are_all_held_and_one_more_is_not(context: int, engine: str) -> None:
    given: dict[str, Any] = {"gpu": "rtx-4090", "engine": engine, "context_length": context}
    found = maximum(SMALL, "concurrency", **given)
    assert found.value is not None
    asked = scenario({"model": SMALL, **given})
    answer, more = (estimate(replace(asked, **for_users(asked, engine, found.value + n))) for n in (0, 1))
    assert answer.fits
    assert held(answer) >= found.value
    assert not more.fits or held(more) <= found.value


def test_the_models_own_end_is_named() -> None:
    found = maximum(SMALL, gpu="h200")
    assert found.value == 32_768
    assert "max_model_len 32,768" in found.beyond


def test_nothing_fits_is_an_answer() -> None:
    found = maximum(LLAMA, task="train", method="full", gpu="rtx-3060")
    assert found.value is None
    assert "missing" in found.beyond
    assert found.to_dict()["likelihood"] is None


def test_the_frontier_is_what_max_says_at_each_length() -> None:
    given: dict[str, Any] = {"task": "train", "gpu": "rtx-4090", "method": "lora"}
    rows = list(frontier(SMALL, **given))
    assert [tokens for tokens, _ in rows] == [512 << n for n in range(len(rows))]
    for tokens, batch in rows[:3]:
        assert maximum(SMALL, "batch", **given, sequence_length=tokens).value == batch
    assert [batch for _, batch in rows] == sorted((batch for _, batch in rows), reverse=True)


@pytest.mark.parametrize(
    ("of", "given", "says"),
    [
        ("batch", {"task": "train"}, "name what it is to fit into"),
        ("rank", {"task": "train", "gpu": "rtx-4090"}, "for task 'train' there is batch, context"),
        ("contxt", {"gpu": "rtx-4090"}, "did you mean 'context'"),
        ("concurrency", {"gpu": "rtx-4090"}, "name --context"),
        (None, {"gpu": "rtx-4090", "tensor_parallel": 3}, "tensor_parallel 3"),
    ],
)
def test_wrong_wishes_are_one_line(of: str | None, given: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        maximum(LLAMA, of, **given)


def test_the_command(run: Run) -> None:
    done = run("max", LLAMA, "--gpu", "rtx-4090", "--context", "8192")
    assert done.status == 0
    assert done.out.startswith("meta-llama/Llama-3.1-8B on GeForce RTX 4090, vllm:")
    data = json.loads(run("max", LLAMA, "--gpu", "rtx-4090", "--of", "context", "--json").out)
    assert data["largest"][0]["value"] == maximum(LLAMA, "context", gpu="rtx-4090").value
    assert {"length": 512, "batch": dict(frontier(LLAMA, gpu="rtx-4090"))[512]} in data["frontier"]


def test_the_largest_models(run: Run) -> None:
    wish = ("max", "qwen2.5 instruct", "--of", "model", "--gpu", "rtx-3060", "--engine", "llama.cpp", "--weights", "Q4_K_M")
    out = run(*wish, "--context", "4096").out.splitlines()
    assert any(line.startswith("Qwen/Qwen2.5") and "14B-Instruct" in line for line in out[2:])
    assert (
        run("max", "no such", "--of", "model", "--gpu", "rtx-3060").err
        == "vramplan: max model: no model of the catalogue is called 'no such'\n"
    )
