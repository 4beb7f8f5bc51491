"""`fix`: what makes a scenario fit. Each remedy alone, and the smallest set that does, of the cheapest classes.

The smallest set has as few remedies as can be of the dearest class, then of the next, and so on; among equals those that the table names
first. A set takes each remedy as far as it goes and then as mildly as it may. What it does not know: remedies that no engine estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ..bisection import first, most
from ..estimate import Estimate, estimate
from ..scenario import Scenario
from .remedies import CLASSES, Remedy, of_task
from .trying import Change, Tries, asked_of, needs_gpu, rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A remedy with its `change`; `saves` bytes at the peak alone, and `pace` is what is left of the speed (None: not known)."""

    remedy: Remedy
    change: Change
    saves: int
    fits: bool
    pace: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        return {
            "remedy": self.remedy.name,
            "class": self.remedy.kind,
            "gives_up": self.remedy.gives_up,
            "change": plain(self.change),
            "saves": self.saves,
            "fits": self.fits,
            "pace": self.pace,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """What was asked and its answer, each remedy alone, and the smallest set that fits with its estimate.

    Where nothing fits, `fitted` is None and `nearest` what comes nearest, with all remedies together.
    """

    asked: Estimate
    alone: tuple[Step, ...]
    smallest: tuple[Step, ...]
    fitted: Estimate | None
    nearest: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        best = self.fitted or self.nearest
        return {
            "fits": self.asked.fits,
            "headroom": self.asked.headroom,
            "alone": [step.to_dict() for step in self.alone],
            "smallest": [step.to_dict() for step in self.smallest],
            "plan": best.to_dict() if best else None,
        }


def plain(change: Change) -> dict[str, Any]:
    """A change as JSON has it."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in change.items()}


def fix(model: str | Mapping[str, object] | Scenario, **keys: object) -> Fix:
    """What makes a scenario fit. Raises BadInput without a GPU, and what `estimate` raises for the scenario itself."""
    asked = asked_of(model, keys)
    needs_gpu(asked, "fix")
    now = estimate(asked)
    tries = Tries(asked)
    offered = [(one, changes) for one in of_task(asked.task) if (changes := _accepted(tries, one.changes(now.scenario)))]
    alone = [_alone(tries, now, one, changes) for one, changes in offered]
    useful = tuple(step for step in alone if step.saves > 0 or step.fits)
    if now.fits:
        return Fix(asked=now, alone=useful, smallest=(), fitted=now, nearest=None)
    chosen = _smallest(tries, offered)
    if chosen is None:
        everything = _joined([changes[-1] for _, changes in offered])
        return Fix(asked=now, alone=useful, smallest=(), fitted=None, nearest=tries.answer(everything) or now)
    milder = _mildest(tries, chosen)
    steps = {step.remedy.name: step for step in alone}
    smallest = tuple(_step(tries, now, one, change, steps[one.name].saves) for (one, _), change in zip(chosen, milder, strict=True))
    return Fix(asked=now, alone=useful, smallest=smallest, fitted=tries.answer(_joined(milder)), nearest=None)


Offered = tuple[Remedy, Sequence[Change]]
Fitting = Callable[[Sequence[Offered]], bool]


def _accepted(tries: Tries, changes: Sequence[Change]) -> Sequence[Change]:
    """Those that the engine takes: with many of a kind, as far as the last that it takes."""
    if len(changes) <= 8:
        return [change for change in changes if tries.answer(change)]
    last = most(lambda n: tries.answer(changes[n]) is not None, len(changes) - 1)
    return changes[: last + 1]


def _alone(tries: Tries, now: Estimate, one: Remedy, changes: Sequence[Change]) -> Step:
    """The mildest change that fits, else the strongest."""
    at = first(lambda n: tries.fits(changes[n]), len(changes))
    change = changes[min(at, len(changes) - 1)]
    return _step(tries, now, one, change, None)


def _step(tries: Tries, now: Estimate, one: Remedy, change: Change, saves: int | None) -> Step:
    answer = tries.answer(change)
    if saves is None:
        saves = now.peak[1] - answer.peak[1] if answer else 0
    return Step(remedy=one, change=change, saves=saves, fits=tries.fits(change), pace=_pace(now, answer))


def _pace(before: Estimate, after: Estimate | None) -> float | None:
    was, now = rate(before), rate(after) if after else None
    return round(now / was, 3) if was and now else None


def _joined(changes: Sequence[Change]) -> dict[str, Any]:
    """All changes at once; what is kept in host memory adds up, of other keys the last one counts."""
    made: dict[str, Any] = {}
    for change in changes:
        for key, value in change.items():
            made[key] = tuple(dict.fromkeys((*made.get(key, ()), *value))) if key == "offload" else value
    return made


def _smallest(tries: Tries, offered: Sequence[Offered]) -> list[Offered] | None:
    """The set, by class: the fewest of the dearest class that is needed, with all of those below it, and so on downwards."""
    by_class = {kind: [one for one in offered if one[0].kind == kind] for kind in CLASSES}

    def fits(chosen: Sequence[Offered]) -> bool:
        return tries.fits(_joined([changes[-1] for _, changes in chosen]))

    fixed: list[Offered] = []
    needed = next((level for level in range(len(CLASSES)) for _ in _sets(by_class, level, [], fits)), None)
    if needed is None:
        return None
    for level in range(needed, -1, -1):
        fixed = [*next(_sets(by_class, level, fixed, fits)), *fixed]
    order = [one[0] for one in offered]
    return sorted(fixed, key=lambda one: order.index(one[0]))


def _sets(by_class: Mapping[str, list[Offered]], level: int, fixed: list[Offered], fits: Fitting) -> Iterator[tuple[Offered, ...]]:
    """Sets of one class that fit together with those `fixed` and with all of the classes below, the smallest first."""
    below = [one for kind in CLASSES[:level] for one in by_class[kind]]
    mine = by_class[CLASSES[level]]
    for size in range(len(mine) + 1):
        for chosen in combinations(mine, size):
            if any(fits([*under, *chosen, *fixed]) for under in ((), below)):
                yield chosen


def _mildest(tries: Tries, chosen: Sequence[Offered]) -> list[Change]:
    """Of each remedy, the dearest first, the mildest change with which the set still fits."""
    taken = [changes[-1] for _, changes in chosen]
    for place in range(len(chosen) - 1, -1, -1):
        changes = chosen[place][1]

        def holds(n: int, place: int = place, changes: Sequence[Change] = changes) -> bool:
            return tries.fits(_joined([*taken[:place], changes[n], *taken[place + 1 :]]))

        taken[place] = changes[min(first(holds, len(changes)), len(changes) - 1)]
    return taken
