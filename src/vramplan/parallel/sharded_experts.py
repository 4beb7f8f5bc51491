"""Fully sharded layers whose experts are split over ranks first: a layer's experts are a unit of their own, within the layer's.

Each of `degree` ranks has whole experts, whose parts the ranks that have the same ones share (`experts`). A layer's unit gathers the next
one's ahead, forward and backward, as said by torchtitan 0.2.2 `models/llama4/infra/parallelize.py` apply_fsdp; the experts are whole from
where rows go to them to where they come back (pytorch 2.13 `distributed/fsdp/_fully_shard/_fsdp_param_group.py`).

What it does not know: gradients that wait for a later pass, replicated groups, parts in host memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..runs import END, Event, Key, Run, Runs
from ..tensors import Weight
from .sharded import (
    AHEAD,
    BUFFER,
    CAST,
    HELD,
    REDUCED,
    REDUCING,
    WHOLE,
    Adds,
    Sharding,
    Unit,
    begin,
    edges,
    end,
    freed,
    made,
    part_of,
    weights_of,
)

EMPTY = Unit()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The unit of a layer, and that of its experts."""

    layer: Unit = EMPTY
    experts: Unit = EMPTY

    @property
    def last(self) -> int:
        """The buffer that is gathered last."""
        return self.experts.buffer or self.layer.buffer


NONE = Pair()


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts(Sharding):
    """How ranks that have the same experts share them: whole ones, or where there are too few, rows of each."""

    def part(self, weight: Weight) -> Weight:
        """A rank's part of experts, `copies` of which it has."""
        return (
            part_of(weight, self.ranks)
            if weight.copies >= self.ranks
            else replace(part_of(replace(weight, copies=1), self.ranks), copies=weight.copies)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertSharding(Sharding):
    """Sharding in which `experts` says how the ranks that have the same ones share them."""

    experts: Sharding

    def part(self, weight: Weight) -> Weight:
        """A rank's part of a weight, or of its experts."""
        return self.experts.part(weight) if weight.kind == "experts" else Sharding.part(self, weight)

    def arranged(self, runs: Runs, root: Unit, adds: Adds = "") -> Runs:
        """The runs with what the ranks gather and reduce."""
        pieces = [(replace(run, forward=[*run.forward], backward=[*run.backward]), n) for run, times in runs for n in edges(times)]
        pairs = [self._pair(run) for run, _ in pieces]
        for index, (run, _) in enumerate(pieces):
            before = pairs[index - 1] if index else NONE
            after = pairs[index + 1] if index + 1 < len(pieces) else NONE
            self._gathers(run, pairs[index], before, after)
            self._gathers_again(run, pairs[index], before, after, lone=index + 2 == len(pieces), first=index + 1 == len(pieces))
            self._reduces(run, pairs[index], after, adds)
        return pieces

    def _pair(self, run: Run) -> Pair:
        mine = list(weights_of(run))
        return Pair(
            layer=self.unit(w for w in mine if w.kind != "experts"), experts=self.experts.unit(w for w in mine if w.kind == "experts")
        )

    def _gathers(self, run: Run, mine: Pair, before: Pair, after: Pair) -> None:
        """The forward pass: the next units' buffers are made as soon as this one is whole."""
        key, inner, last, stays = self._keys(run), _keys(run), end(run), self._stays(run)
        held, whole = (key(HELD), before.last), (key(WHOLE), mine.layer.whole)
        buffers = (key(BUFFER), mine.layer.buffer), (inner(BUFFER), mine.experts.buffer)
        cast = key(CAST), mine.layer.cast * (before is NONE)
        entered = [*made(0, held, cast, *buffers), *freed(0, cast), *made(0, whole), *freed(0, held), *_ahead(0, key, inner, after)]
        left = freed(last, (key(AHEAD), after.layer.buffer), (inner(AHEAD), after.experts.buffer), buffers[1])
        if mine.experts.whole:
            enter, leave = _places(run)
            experts = inner(WHOLE), mine.experts.whole
            _insert(run.forward, enter, [*made(enter, experts), *freed(enter, buffers[0])])
            _insert(run.forward, leave + 1, freed(leave, experts) if not stays else [])
        else:
            left += freed(last, buffers[0])
        if stays:
            run.kept += mine.layer.whole + mine.experts.whole
        else:
            left += freed(last, whole)
        _insert(run.forward, last + 1, left)
        run.forward = [*entered, *run.forward]

    def _gathers_again(self, run: Run, mine: Pair, before: Pair, after: Pair, *, lone: bool, first: bool) -> None:
        """The backward pass; the last layer (`lone`) has to gather its experts itself, the head (`first`) gathers no experts ahead."""
        at, key, inner, stays = end(run), self._keys(run), _keys(run), self._stays(run)
        ahead = NONE if self.keeps else replace(before, experts=EMPTY) if first else before
        buffer, whole = (key(BUFFER), mine.layer.buffer * (not stays)), (key(WHOLE), mine.layer.whole * (not stays))
        own, experts = (inner(BUFFER), mine.experts.buffer * (not stays)), (inner(WHOLE), mine.experts.whole * (not stays))
        entered = made(at, (key(REDUCED), after.layer.gradients * self.reduced), buffer, (own[0], own[1] * (not lone)), whole)
        entered += [*freed(at, buffer), *_ahead(at, key, inner, ahead)]
        if mine.experts.whole:
            enter, leave = _places(run)
            fetched = [*made(leave, (own[0], own[1] * lone), experts), *freed(leave, own)]
            if run.checkpointed:
                start = run.backward.index(run.rebuild[0])
                rebuilt = run.backward[start : start + len(run.rebuild)]
                _insert(rebuilt, enter, fetched)
                run.backward[start : start + len(run.rebuild)] = rebuilt
            else:
                begin(run, leave, fetched)
        begin(run, at, entered)
        run.backward += freed(0, (key(WHOLE), mine.layer.whole), (key(AHEAD), ahead.layer.buffer), (inner(AHEAD), ahead.experts.buffer))

    def _reduces(self, run: Run, mine: Pair, after: Pair, adds: Adds) -> None:
        """Experts' gradients are reduced when those of their rows are there, the layer's at its end."""
        key, inner = self._keys(run), _keys(run)
        held = key(REDUCED), after.layer.gradients * self.reduced
        experts = {("w", id(w)) for w in weights_of(run) if w.kind == "experts"}
        own = self._own(run, adds)
        if mine.experts.gradients:
            enter, _ = _places(run)
            reducing = inner(REDUCING), mine.experts.gradients * self.reduced
            kept: tuple[Key, int] = (
                ("x" if adds == "parts" else "s", -2 - 8 * run.first),
                self.experts.gradient * (mine.experts.gradients // self.experts.ranks),
            )
            events = [*freed(enter, (inner(WHOLE), mine.experts.whole), held), *made(enter, reducing)]
            events += [*freed(enter, *(one for one in own if one[0] in experts)), *made(enter, kept)]
            _after(run, enter, events + freed(enter, *([kept] if adds == "parts" else [])))
            run.backward += freed(0, reducing)
        else:
            run.backward += freed(0, held)
        self._reduce(run, mine.layer, [one for one in own if one[0] not in experts], adds)


def with_experts(sharding: Sharding, degree: int) -> ExpertSharding:
    """`sharding` of all but the experts, which are split over `degree` ranks first."""
    own = {name: getattr(sharding, name) for name in Sharding.__dataclass_fields__}
    return ExpertSharding(**own, experts=Experts(**own | {"ranks": sharding.ranks // degree}))


def _keys(run: Run) -> Callable[[int], Key]:
    """Names of what a run's experts gather and reduce."""
    return lambda number: ("u" if number < HELD else "a", -1 - 8 * run.first - number)


def _places(run: Run) -> tuple[int, int]:
    """The ops where rows go to the experts, and come back."""
    names = [op.name.rpartition(".")[2] for op in run.ops]
    return names.index("received"), names.index("returned")


def _ahead(at: int, key: Callable[[int], Key], inner: Callable[[int], Key], pair: Pair) -> list[Event]:
    """The units of `pair`, gathered one after the other."""
    events: list[Event] = []
    for name, unit in ((key, pair.layer), (inner, pair.experts)):
        cast = name(CAST), unit.cast
        events += [*made(at, cast, (name(AHEAD), unit.buffer)), *freed(at, cast)]
    return events


def _insert(events: list[Event], at: int, new: Sequence[Event]) -> None:
    """Put `new` events before those of op `at`, in the order in which ops run."""
    place = next((number for number, event in enumerate(events) if event[1] >= at), len(events))
    events[place:place] = new


def _after(run: Run, at: int, new: Sequence[Event]) -> None:
    """Put `new` events where the backward pass has been through op `at`."""
    last = max((number for number, event in enumerate(run.backward) if event[1] >= at and event[2] != END), default=-1)
    run.backward[last + 1 : last + 1] = new
