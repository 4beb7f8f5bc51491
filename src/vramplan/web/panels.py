"""What the page shows beside the answer, each from its own room: speed at once; remedies and the frontier, which are searches, after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..estimate import Estimate
from ..report.charts import frontier as chart
from ..scenario import scenario
from ..units import gib
from .address import Given, address
from .controls import label

if TYPE_CHECKING:
    from ..planner.buy import Offer
    from ..planner.fix import Step

SPEEDS = {
    "decode_tokens_per_second": ("decode", "{:,.0f} tokens/s"),
    "decode_tokens_per_second_per_sequence": ("for each sequence", "{:,.1f} tokens/s"),
    "prefill_tokens_per_second": ("prefill", "{:,.0f} tokens/s"),
    "time_to_first_token_s": ("to the first token", "{:,.2f} s"),
    "step_seconds": ("a step", "{:,.2f} s"),
    "training_tokens_per_second": ("training", "{:,.0f} tokens/s"),
}
"""Figures of speed under the names of the machine interface: what the page calls them, and how it writes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Figures of speed by name, what bounds them, and how they come about."""

    figures: tuple[tuple[str, str], ...] = ()
    bound: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One change: its name, what it is, what it saves and costs, and the address of the scenario with it."""

    name: str
    change: str
    effect: str
    gives_up: str
    fits: bool
    href: str


@dataclass(frozen=True, slots=True, kw_only=True)
class More:
    """What searches found: `smallest` the set that makes it fit and `all_href` its address, `alone` each remedy by itself, the frontier."""

    fits: bool
    smallest: tuple[Remedy, ...]
    all_href: str
    alone: tuple[Remedy, ...]
    frontier: str
    points: tuple[tuple[int, int], ...]
    axes: tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Cards that the scenario fits on: which and how many, how full, how fast, for how much, and the address of the scenario there."""

    name: str
    href: str
    peak: str
    likelihood: str
    speed: str
    rent: str
    bought: str


def pace(answer: Estimate) -> Pace:
    """How fast it runs; nothing where that is not known."""
    from ..speed import speed

    found = speed(answer) if answer.gpu else None
    if found is None:
        return Pace()
    figures = tuple((SPEEDS[name][0], SPEEDS[name][1].format(value)) for name, value in found.numbers.items() if name in SPEEDS)
    return Pace(figures=figures, bound=f"bound by {found.bound}", why=found.why)


def more(answer: Estimate, given: Given) -> More | None:
    """Remedies and the frontier of what `given` asked; None without a GPU. Takes up to seconds."""
    if answer.room is None:
        return None
    from ..planner.fix import fix
    from ..planner.largest import frontier

    asked = scenario(given)
    found = fix(asked)
    joined = {key: value for step in found.smallest for key, value in step.change.items()}
    points = tuple(frontier(asked))
    axes = ("sequence_length", "micro_batch") if answer.scenario.task == "train" else ("context_length", "sequences")
    names = label(axes[0]).lower(), label(axes[1]).lower()
    at = [getattr(answer.scenario, axis) for axis in axes]
    here = (at[0], at[1]) if axes[1] in given or answer.scenario.task == "train" else None
    return More(
        fits=found.asked.fits is True,
        smallest=tuple(_remedy(step, given) for step in found.smallest),
        all_href=address(given, **joined),
        alone=() if found.asked.fits else tuple(_remedy(step, given) for step in found.alone),
        frontier=chart(points, here if here and all(here) else None, names) if len(points) > 1 else "",
        points=points,
        axes=names,
    )


def offers(given: Given) -> tuple[Card, ...]:
    """The cards that `given` fits on, whatever card it names, the cheapest first. Takes up to seconds."""
    from ..planner.buy import buy

    wish = {name: value for name, value in given.items() if name not in ELSEWHERE}
    return tuple(_card(offer, wish) for offer in buy(scenario(wish)))


ELSEWHERE = ("gpu", "gpu_memory", "gpu_count", "tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel")
"""Keys that mean something on the named cards only."""


def _card(offer: Offer, wish: Given) -> Card:
    plan, several = offer.plan, offer.count > 1
    change: Given = {"gpu": offer.name, "gpu_count": offer.count if several else None, "engine": plan.scenario.engine}
    if several and plan.scenario.task == "train":
        change["sharding"] = plan.scenario.sharding
    return Card(
        name=f"{offer.count} × {offer.gpu.name}" if several else offer.gpu.name,
        href=address(wish, **change),
        peak=f"{gib(plan.answer.peak[1], 1)} of {gib(plan.answer.room or 0, 1)}",
        likelihood=f"{100 * plan.likelihood:.0f} %",
        speed=f"{plan.rate:,.0f} tokens/s" if plan.rate else "-",
        rent=f"${offer.per_hour:,.2f}" if offer.per_hour is not None else "-",
        bought=f"${offer.to_buy:,.0f}" if offer.to_buy is not None else "-",
    )


def _remedy(step: Step, given: Given) -> Remedy:
    left = f"{100 * step.pace:.0f} % of the speed" if step.pace is not None and abs(step.pace - 1) > 0.005 else ""
    saved = f"saves {gib(step.saves)}" if step.saves > 0 else ""
    return Remedy(
        name=step.remedy.name,
        change=", ".join(f"{label(key)}: {_value(value)}" for key, value in step.change.items()),
        effect=", ".join(text for text in (saved, left) if text),
        gives_up=step.remedy.gives_up,
        fits=step.fits,
        href=address(given, **step.change),
    )


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return (
        ", ".join(map(str, value))
        if isinstance(value, Sequence) and not isinstance(value, str)
        else "default"
        if value is None
        else str(value)
    )
