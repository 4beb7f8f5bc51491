"""`buy`: what is shared between cards is byte for byte what `estimate` says; orders, prices and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import Run
from vramplan import BadInput, estimate
from vramplan.catalog.gpus import all_gpus, find_gpu
from vramplan.planner.buy import COUNTS, ORDERS, buy
from vramplan.planner.moved import ALIKE, Cards
from vramplan.planner.prices import given_prices, parse_price
from vramplan.planner.search import LIKELY
from vramplan.planner.trying import Tries
from vramplan.scenario import scenario

LLAMA = "meta-llama/Llama-3.1-8B"
SMALL = "Qwen/Qwen2.5-0.5B"


@pytest.mark.parametrize("engine", ALIKE)
@pytest.mark.parametrize(
    "given", [{"method": "full"}, {"method": "full", "precision": "bf16-mixed", "checkpointing": "full"}, {"method": "lora"}]
)
def test_shared_estimates_are_those_of_estimate(engine: str, given: dict[str, Any]) -> None:
    asked = scenario({"model": SMALL, "task": "train", "engine": engine, "micro_batch": 4, "sequence_length": 1024, **given})
    cards, known = Cards(Tries(asked)), 0
    for gpu in all_gpus():
        shared = cards.on(gpu, gpu.id, {})
        if shared is None:
            continue
        known += 1
        own = estimate(SMALL, **{key: value for key, value in vars_of(asked).items() if key != "model"}, gpu=gpu.id)
        assert shared.ledger == own.ledger
        assert (shared.scenario, shared.gpu, shared.room, shared.shares) == (own.scenario, own.gpu, own.room, own.shares)
        if gpu.id in ("gtx-1060-6gb", "rtx-4090", "h100-sxm-80gb", "apple-m1"):
            assert cards.fits(shared) == own.fits
            assert (shared.quantities, shared.likelihood) == (own.quantities, own.likelihood)
    assert known == (len(all_gpus()) if Tries(asked).answer({}) else 0)


def vars_of(asked: Any) -> dict[str, Any]:
    return {name: value for name in asked.__slots__ if (value := getattr(asked, name)) is not None}


def test_each_offer_fits_and_fewer_are_not_likely_to() -> None:
    found = buy(LLAMA, context_length=8192, weights="Q8_0")
    assert len(found) > 50
    for one in found[::9]:
        answer = estimate(one.plan.scenario)
        assert answer.fits
        fewer = [n for n in COUNTS if n < one.count]
        if one.plan.likelihood >= LIKELY and fewer:
            less = estimate(LLAMA, context_length=8192, weights="Q8_0", gpu=one.name, gpu_count=fewer[-1])
            assert not less.fits or (less.likelihood or 0) < LIKELY


@pytest.mark.parametrize("by", ORDERS)
def test_orders(by: str) -> None:
    found = buy(LLAMA, by=by, context_length=8192)
    values = {
        "price": [one.per_hour for one in found],
        "card": [one.to_buy for one in found],
        "token": [one.per_million_tokens for one in found],
        "speed": [-one.plan.rate if one.plan.rate else None for one in found],
    }[by]
    known = [value for value in values if value is not None]
    assert known == sorted(known)
    assert values[: len(known)] == known


def test_unified_memory_competes_with_its_sizes_and_its_bandwidth() -> None:
    found = {one.name: one for one in buy("meta-llama/Llama-3.1-70B", weights="Q4_K_M", context_length=8192, by="speed")}
    assert "apple-m4-max-40-core 64gb" in found
    assert "apple-m4-max-40-core 48gb" not in found
    assert found["apple-m4-max-40-core 64gb"].plan.rate < found["h100-sxm-80gb"].plan.rate  # type: ignore[operator]
    assert all(one.count == 1 for one in found.values() if one.gpu.unified)


def test_prices_of_the_user_go_first(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text(json.dumps({"rtx-4090": "0.30usd/h", "l40": "$9/hour"}))
    prices = given_prices(["4090=$0.25/h", "rtx-4090=1500usd"], file)
    assert prices["l40"][0].usd == 9
    best = buy(LLAMA, context_length=8192, prices=prices)[0]
    assert best.name == "rtx-a4000" or best.per_hour == 0.25
    mine = next(one for one in buy(LLAMA, context_length=8192, prices=prices) if one.name == "rtx-4090")
    assert (mine.per_hour, mine.to_buy) == (0.25 * mine.count, 1500 * mine.count)
    assert mine.per_million_tokens == pytest.approx(mine.per_hour / 3600 / mine.plan.rate * 1e6)  # type: ignore[operator]


@pytest.mark.parametrize("text", ["2.4", "2.4/h", "2.4 eur", "usd", "-1usd", "1e9usd", ""])
def test_a_price_needs_its_currency(text: str) -> None:
    with pytest.raises(BadInput, match="write it with its currency"):
        parse_price(text, "mine")


def test_every_price_of_the_catalogue_is_dated() -> None:
    assert all(price.date and price.source and price.per in ("hour", "card") for gpu in all_gpus() for price in gpu.prices)


def test_at_hand() -> None:
    found = buy("meta-llama/Llama-3.1-70B", weights="Q4_K_M", context_length=8192, at_hand={"rtx-3090": 2, "rtx-3060-12gb": 1})
    assert [(one.name, one.count) for one in found] == [("rtx-3090", 2)]
    assert find_gpu("rtx-3090") == found[0].gpu


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"by": "prize"}, "choose price, token, speed, card"),
        ({"gpu": "rtx-4090"}, "leave --gpu"),
        ({"at_hand": {"rtx-4090": 0}}, "at least one"),
        ({"at_hand": {"rtx-9999": 1}}, "not in the catalogue"),
        ({"tensor_parallel": 3}, "tensor_parallel 3"),
        ({"sequences": 0}, "sequences 0"),
    ],
)
def test_wrong_wishes(given: dict[str, Any], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        buy(LLAMA, **given)


def test_the_command(run: Run) -> None:
    out = run("buy", LLAMA, "--context", "8192", "--limit", "3").out.splitlines()
    assert out[0].startswith("meta-llama/Llama-3.1-8B: ")
    assert "Prices, which go stale:" in out
    data = json.loads(run("buy", LLAMA, "--context", "8192", "--have", "rtx-4090=2", "--json").out)
    assert [(one["gpu"], one["gpu_count"], one["usd_to_buy"]) for one in data["offers"]] == [("rtx-4090", 1, 1599)]
    assert run("buy", LLAMA, "--price", "a9999=2.5usd").status == 2
    assert run("buy", LLAMA, "--price", "rtx-4090=2.5").err.count("\n") == 1
    assert run("buy", LLAMA, "--have", "rtx-4090=0").status == 2
    assert "No GPU" in run("buy", "meta-llama/Llama-3.1-70B", "--have", "gtx-1060-6gb").out
