"""`buy`: which GPUs, and how many of each, a scenario fits on: by price, by price of a token, by speed, or of those at hand.

Of each GPU the least number that is likely to fit is offered. Machines with unified memory compete with what the system leaves a model,
and with their bandwidth. What it does not know: the machine around a card, how several cards are connected, electricity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..catalog.gpus import Gpu, Price, all_gpus, find_gpu
from ..errors import BadInput
from ..estimate import Estimate
from ..scenario import Scenario
from .held import for_users
from .moved import Cards
from .prices import cheapest
from .search import LIKELY, Plan
from .trying import Change, Tries, asked_of

COUNTS = (1, 2, 4, 8, 16)
"""Of one GPU; of a machine with unified memory one."""
ENGINES = (None, "llama.cpp")
"""The first that runs on a GPU serves, where none is asked for: the default one, or that which runs on all."""


@dataclass(frozen=True)
class Offer:
    """So many of a GPU with the `plan` that runs on them; prices are for all of them together, None where none is known."""

    gpu: Gpu
    name: str
    count: int
    plan: Plan
    rent: Price | None
    bought: Price | None

    @property
    def per_hour(self) -> float | None:
        """US dollars an hour."""
        return self.rent.usd * self.count if self.rent else None

    @property
    def to_buy(self) -> float | None:
        """US dollars for the cards."""
        return self.bought.usd * self.count if self.bought else None

    @cached_property
    def per_million_tokens(self) -> float | None:
        """US dollars for a million tokens, rented and always busy."""
        rate = self.plan.rate
        return self.per_hour / 3600 / rate * 1e6 if self.per_hour is not None and rate else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data: a plan as docs/interface.md says, with the GPU, its number and its prices."""
        return {
            "gpu": self.name,
            "gpu_count": self.count,
            "unified": self.gpu.unified,
            "usd_per_hour": self.per_hour,
            "usd_to_buy": self.to_buy,
            "usd_per_million_tokens": self.per_million_tokens,
            "prices": [{"usd": p.usd, "per": p.per, "date": p.date, "source": p.source} for p in (self.rent, self.bought) if p],
            **self.plan.to_dict(),
        }


def _known(*values: float | None) -> tuple[tuple[bool, float], ...]:
    """Values to sort by, the unknown last."""
    return tuple((value is None, value or 0.0) for value in values)


ORDERS: Mapping[str, Callable[[Offer], Any]] = {
    "price": lambda one: _known(one.per_hour, one.to_buy, -(one.plan.rate or 0.0)),
    "token": lambda one: _known(one.per_million_tokens, one.per_hour, one.to_buy),
    "speed": lambda one: _known(-one.plan.rate if one.plan.rate else None, one.per_hour, one.to_buy),
    "card": lambda one: _known(one.to_buy, one.per_hour, -(one.plan.rate or 0.0)),
}
"""By what is sorted: renting, the price of a token, speed, or buying."""


def buy(
    model: str | Mapping[str, object] | Scenario,
    *,
    by: str = "price",
    prices: Mapping[str, tuple[Price, ...]] | None = None,
    at_hand: Mapping[str, int] | None = None,
    progress: Callable[[int], object] = lambda done: None,
    **keys: object,
) -> list[Offer]:
    """The GPUs that a scenario fits on, best first `by` price, card, token or speed; of those `at_hand` (name -> how many) where given.

    `sequences` of a served model are users, all held at once. Raises BadInput for an unknown card or order, and what `estimate` raises
    where every GPU is refused. Interrupted (KeyboardInterrupt) it answers with the GPUs seen so far.
    """
    asked = asked_of(model, keys)
    if by not in ORDERS:
        raise BadInput(f"buy by {by!r}: choose {', '.join(ORDERS)}")
    if asked.gpu or asked.gpu_memory:
        raise BadInput("buy: finds the GPU; leave --gpu and --gpu-memory out, or name those that you have with --have")
    if at_hand and min(at_hand.values()) < 1:
        raise BadInput("--have: write it as gpu or gpu=2, with at least one")
    cards = Cards(Tries(asked))
    weights = _weights(asked)
    found: list[Offer] = []
    try:
        for done, (gpu, name, most) in enumerate(_offered(at_hand), 1):
            progress(done)
            if offer := _least(cards, gpu, name, most, weights, prices or {}):
                found.append(offer)
    except KeyboardInterrupt:
        pass
    if not found and (refused := _refused(cards.tries)):
        raise BadInput(refused)
    return sorted(found, key=ORDERS[by])


def _offered(at_hand: Mapping[str, int] | None) -> Iterator[tuple[Gpu, str, int]]:
    """GPUs, the names that mean them in a scenario, and how many there may be."""
    if at_hand:
        yield from ((find_gpu(name), name, count) for name, count in at_hand.items())
        return
    for gpu in all_gpus():
        for size in gpu.memory_options or (0,):
            name = f"{gpu.id} {size}gb" if size else gpu.id
            yield find_gpu(name), name, 1 if gpu.unified else COUNTS[-1]


def _engines(asked: Scenario) -> tuple[str | None, ...]:
    return (asked.engine,) if asked.engine or asked.task == "train" else ENGINES


def _weights(asked: Scenario) -> int:
    """Bytes of weights on the GPUs, which a number of them shares at best evenly; 0 where no GPU is named without an answer."""
    sizes = [answer.ledger.total("weights", moment=answer.peak[0]) for answer in _anywhere(asked)]
    return min(sizes, default=0)


def _anywhere(asked: Scenario) -> Iterator[Estimate]:
    tries = Tries(asked)
    for engine in _engines(asked):
        answer = tries.answer({"engine": engine} if engine else {})
        if answer is None:
            return
        yield answer


def _least(cards: Cards, gpu: Gpu, name: str, most: int, weights: int, prices: Mapping[str, tuple[Price, ...]]) -> Offer | None:
    """The fewest that are likely to fit, else the fewest that fit."""
    asked = cards.tries.asked
    rent, bought = (cheapest(gpu, prices, per) for per in ("hour", "card"))
    unlikely: list[tuple[int, Plan]] = []
    for count in sorted({n for n in (*COUNTS, most) if n <= most}) if asked.gpu_count is None else (asked.gpu_count,):
        if weights // count > gpu.usable or count > most:
            continue
        made = _plan(cards, gpu, name, count)
        if made is None or made.headroom < 0:
            continue
        if made.margin >= LIKELY and cards.fits(made.answer) and made.likelihood >= LIKELY:
            return Offer(gpu=gpu, name=name, count=count, plan=made, rent=rent, bought=bought)
        unlikely.append((count, made))
    for count, made in unlikely:
        if cards.fits(made.answer):
            return Offer(gpu=gpu, name=name, count=count, plan=made, rent=rent, bought=bought)
    return None


def _plan(cards: Cards, gpu: Gpu, name: str, count: int) -> Plan | None:
    """The scenario on so many of a GPU, by the first engine that runs there."""
    asked = cards.tries.asked
    users = asked.sequences or 1 if asked.task == "infer" else 1
    for engine in _engines(asked):
        answer = cards.on(gpu, name, _change(asked, engine, count))
        if answer:
            return Plan(answer=answer, users=users, cost=0, hosted=False, gives_up=())
    return None


def _change(asked: Scenario, engine: str | None, count: int) -> Change:
    several: dict[str, Any] = {"gpu_count": count} if count > 1 else {}
    if count > 1 and asked.task == "train" and asked.sharding is None:
        several["sharding"] = "fsdp"
    users = for_users(asked, engine, asked.sequences) if asked.task == "infer" and asked.sequences else {}
    return {**({"engine": engine} if engine else {}), **users, **several}


def _refused(tries: Tries) -> str | None:
    """Why, where the scenario is refused without any GPU too."""
    if any(_anywhere(tries.asked)):
        return None
    return tries.refusal({})
