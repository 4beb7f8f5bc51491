"""`plan`: from a wish to a short list of complete scenarios, each estimated, each saying what it gives up, the best first.

Every choice of quality meets every choice of pace (`choices.py`); of the sizes, which need less and less, the first that fits is found by
bisection, and what does not fit at its least is given up with all its sizes. A plan keeps a margin: it is `LIKELY` to fit. Its order: what
runs on GPUs alone, then quality, speed, how little is given up, room. Offered is what no other plan beats in all of these. It does not
know of choices that the tables have not, nor how good a model is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from ..bisection import first, most
from ..errors import BadInput
from ..estimate import Estimate
from ..likelihood import likelihood
from ..scenario import Scenario
from .choices import GLOBAL_BATCH, LOSSES, Choice, Space, serving, training
from .held import spare
from .trying import Change, Tries, asked_of, needs_gpu, rate

LIKELY = 0.9
"""Plans are at least so likely to fit, where there are any."""
SHOWN = 6
"""Plans at most."""


@dataclass(frozen=True)
class Plan:
    """A complete scenario that was estimated, with what it gives up; `users` are held at once. Speed in tokens/s, None where not known."""

    answer: Estimate
    users: int
    cost: int
    hosted: bool
    gives_up: tuple[str, ...]

    @property
    def scenario(self) -> Scenario:
        """The scenario, every default filled in."""
        return self.answer.scenario

    @property
    def headroom(self) -> int:
        """Bytes to spare with all users served; negative where they are missing."""
        return spare(self.answer, self.users) or 0

    @property
    def fits(self) -> bool:
        """Whether it fits, and all users with it."""
        return bool(self.answer.fits) and self.headroom >= 0

    @property
    def likelihood(self) -> float:
        """The chance that it does."""
        return min(self.answer.likelihood or 0.0, self.margin)

    @cached_property
    def margin(self) -> float:
        """The same by the peak alone, for which the allocator is not asked."""
        a = self.answer
        several = sum(share.count for share in a.shares) > 1
        room = a.room or 0
        return likelihood(room - self.headroom, room, task=a.scenario.task, engine=str(a.scenario.engine), several=several)

    @cached_property
    def rate(self) -> float | None:
        """Tokens in a second: trained, or decoded for all users."""
        return rate(self.answer)

    @property
    def order(self) -> tuple[bool, int, float, int, int]:
        """The less the better."""
        return self.hosted, self.cost, -(self.rate or 0.0), len(self.gives_up), -self.headroom

    def beats(self, other: Plan) -> bool:
        """Whether it is as good in everything, room in tenths of the GPU's, and better in something."""
        tenth = max((self.answer.room or 0) // 10, 1)
        mine, theirs = ((*p.order[:4], -(p.headroom // tenth)) for p in (self, other))
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data, as docs/interface.md says."""
        data = self.answer.to_dict()
        return {
            "scenario": data["scenario"],
            "quantities": data["quantities"],
            "fits": self.fits,
            "headroom": self.headroom,
            "likelihood": self.likelihood,
            "speed": data.get("speed"),
            "gives_up": list(self.gives_up),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """The plans that are offered, best first, or where there are none the `nearest`, which does not fit. Of `points` scenarios that were
    decided `made` were estimated; `whole` unless the search was interrupted; `likely` where the margin is kept.
    """

    plans: tuple[Plan, ...]
    nearest: Plan | None
    likely: bool
    points: int
    made: int
    whole: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data: `{"plans": […]}`, and what the search was."""
        return {
            "plans": [plan.to_dict() for plan in self.plans],
            "nearest": self.nearest.to_dict() if self.nearest else None,
            "searched": {"scenarios": self.points, "estimated": self.made, "whole": self.whole, "likely": self.likely},
        }


def plan(
    model: str | Mapping[str, object] | Scenario,
    *,
    global_batch: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
    **keys: object,
) -> Plans:
    """Plans for a wish: a scenario of which what is set stays as it is. `sequences` of a served model are users, all held at once.

    A training step is of `global_batch` sequences. Interrupted (KeyboardInterrupt) it answers with the best so far. Raises BadInput for a
    wish that contradicts itself, and what `estimate` raises where every choice is refused.
    """
    asked = asked_of(model, keys)
    needs_gpu(asked, "plan")
    tries = Tries(asked)
    spaces = _spaces(tries, global_batch)
    users = asked.sequences or 1 if asked.task == "infer" else 1
    search = _Search(tries, users, progress)
    try:
        for space in spaces:
            search.through(space)
    except KeyboardInterrupt:
        search.whole = False
    found = search.result(sum(space.points for space in spaces))
    if not found.plans and not found.nearest and found.whole:
        raise BadInput(tries.refusal({}) or "plan: what is given leaves no choice that the engine takes")
    return found


def _spaces(tries: Tries, global_batch: int | None) -> list[Space]:
    """What is searched for a wish."""
    asked = tries.asked
    if asked.task == "infer":
        if global_batch is not None:
            raise BadInput("--global-batch: is for task train")
        usual = tries.answer({})
        first = asked.engine or (str(usual.scenario.engine) if usual else "vllm")
        return [serving(asked, engine) for engine in dict.fromkeys((first,) if asked.engine else (first, "llama.cpp"))]
    ranks = (asked.gpu_count or 1) // (asked.tensor_parallel or 1) or 1
    whole = global_batch if global_batch is not None else (asked.micro_batch or 1) * (asked.gradient_accumulation or 1) * ranks
    if global_batch is None and asked.micro_batch is None and asked.gradient_accumulation is None:
        whole = max(GLOBAL_BATCH // ranks, 1) * ranks
    if whole < 1 or whole % ranks:
        raise BadInput(f"global batch {whole}: must be a multiple of the {ranks} GPUs that train on different sequences")
    losses = [loss for loss in LOSSES if tries.answer({"loss": loss})]
    space = training(asked, losses, whole // ranks)
    if not all(one.sizes for one in space.pace):
        raise BadInput(f"global batch {whole}: is not micro_batch × gradient_accumulation × {ranks} GPUs as they are set")
    return [space]


class _Search:
    """The plans that were found so far, each the first of its sizes that fits."""

    def __init__(self, tries: Tries, users: int, progress: Callable[[int], object]) -> None:
        self.tries, self.users, self.progress = tries, users, progress
        self.found: list[tuple[float, Iterator[Plan]]] = []
        self.nearest: Plan | None = None
        self.whole = True

    def through(self, space: Space) -> None:
        """Every quality with every pace."""
        for quality in space.quality:
            for pace in space.pace:
                self._sized(quality, pace)
                self.progress(self.tries.made)

    def _plan(self, quality: Choice, pace: Choice, size: Change) -> Plan | None:
        answer = self.tries.answer({**quality.change, **pace.change, **size})
        if answer is None:
            return None
        gives_up = (*quality.gives_up, *pace.gives_up)
        return Plan(answer=answer, users=self.users, cost=quality.cost, hosted=pace.hosted, gives_up=gives_up)

    def _sized(self, quality: Choice, pace: Choice) -> None:
        """Takes the first size that is likely to fit by its peak, and the first that may; of one whose least does not, that it does not."""
        taken = self._taken(quality, pace)
        least = self._plan(quality, pace, taken[-1]) if taken else None
        if least is None:
            return
        if least.headroom < 0:
            if self.nearest is None or least.headroom > self.nearest.headroom:
                self.nearest = least
            return
        for bar in (LIKELY, 0.0):
            if least.margin >= bar:
                at = first(partial(self._holds, quality, pace, taken, bar), len(taken))
                self.found.append((bar, self._plans(quality, pace, taken[at:])))

    def _taken(self, quality: Choice, pace: Choice) -> Sequence[Change]:
        """The sizes that the engine takes: all, or the first of them."""
        sizes = pace.sizes
        if self._plan(quality, pace, sizes[-1]):
            return sizes
        return sizes[: 1 + most(lambda n: self._plan(quality, pace, sizes[n]) is not None, len(sizes) - 1)]

    def _plans(self, quality: Choice, pace: Choice, sizes: Sequence[Change]) -> Iterator[Plan]:
        """The plans of those sizes, made when they are asked for."""
        return (made for size in sizes if (made := self._plan(quality, pace, size)))

    def _holds(self, quality: Choice, pace: Choice, sizes: Sequence[Change], bar: float, at: int) -> bool:
        made = self._plan(quality, pace, sizes[at])
        return made is not None and made.headroom >= 0 and made.margin >= bar

    def result(self, points: int) -> Plans:
        """The plans that no other beats, of those that the allocator lets fit too."""
        for bar in (LIKELY, 0.0):
            plans = self._offered(bar)
            if plans:
                return Plans(plans=plans, nearest=None, likely=bar > 0, points=points, made=self.tries.made, whole=self.whole)
        return Plans(plans=(), nearest=self.nearest, likely=False, points=points, made=self.tries.made, whole=self.whole)

    def _offered(self, bar: float) -> tuple[Plan, ...]:
        """What the allocator does not let fit gives way to its next size, until all that are best do fit."""
        rows = [(next(plans), plans) for least, plans in self.found if least == bar]
        while True:
            rows.sort(key=lambda row: row[0].order)
            best = [one for one, _ in rows if not any(other.beats(one) for other, _ in rows)][:SHOWN]
            failed = {id(one) for one in best if not (one.fits and one.likelihood >= bar)}
            if not failed:
                return tuple(best)
            rows = [(one, rest) for before, rest in rows if (one := _after(before, rest, failed))]


def _after(one: Plan, rest: Iterator[Plan], failed: set[int]) -> Plan | None:
    """The plan itself, or the next size of one that failed."""
    return next(rest, None) if id(one) in failed else one
