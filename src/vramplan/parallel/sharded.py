"""Fully sharded data parallelism: each rank keeps its part of every weight, and a unit's weights are whole while it runs.

A unit is a layer, or what is outside of them: all of it (the root), or the embedding and the head each for itself. FSDP2 gathers into one
buffer and copies each weight out of it. It holds the buffer until the next unit has its own (forward), and has the next unit's while one
runs (backward); whole gradients are copied into the input of a reduce-scatter, which is held until that of the next unit. The root is whole
from the first op to the end of the backward pass, and so are its gradients. Where several groups of ranks have the weights, each once
(HSDP), what is reduced within one is reduced between them in place, and in its own precision stays to the end of the backward pass
(pytorch 2.13 `distributed/fsdp/_fully_shard/`: `_fsdp_param_group.py`, `_fsdp_collectives.py`, `_fsdp_state.py`). FSDP1 is in flat.py.

What it does not know: how far the ranks' streams run ahead of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ..dim import Dim, numel
from ..runs import END, Event, Key, Run, Runs
from ..tensors import Weight

SOURCE = "pytorch 2.13 torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py"
WHOLE, REDUCING, REDUCED, HELD, CAST, BUFFER, AHEAD, OUTPUT = range(8)
Adds = Literal["", "parts", "wait", "whole"]
"""What becomes of a pass's gradients: they are reduced, or reduced and added to a rank's parts, or wait as they are for the passes after,
or are added to those that wait and then reduced."""


def part_of(weight: Weight, ranks: int) -> Weight:
    """The first rank's part of a weight: of its rows, or of its experts where these are one tensor; parts are filled up to one size.

    >>> part_of(Weight(name="w", shape=(10, 4), kind="linear", part="mlp"), 4).shape
    (3, 4)
    """
    if weight.copies > 1:
        return replace(weight, copies=-(-weight.copies // ranks))
    return replace(weight, shape=(Dim(-(-weight.shape[0] // ranks), "rows/ranks"), *weight.shape[1:]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """Bytes of a layer's weights as they are gathered, of the buffer for it, of a part that is cast for it; elements of gradients."""

    whole: int = 0
    buffer: int = 0
    cast: int = 0
    gradients: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How `ranks` share the weights. Bytes of an element: `gathered` of a weight as it is computed with, `computed` of its gradient,
    `reduced` of that as it goes to the other ranks, `gradient` of a rank's part.

    `casts`: a part is copied to the computing precision before it is gathered. `apart`: embedding and head are units of their own, the head
    whole from its forward pass to its backward pass unless `always` resharded; the root then is empty. `keeps`: so is every unit.
    `outside`: the loss is no part of the model. `replicated`: more groups of `ranks` have the same weights.
    """

    ranks: int
    gathered: Callable[[Weight], float]
    computed: int
    reduced: int
    gradient: int
    casts: bool = False
    apart: bool = False
    always: bool = False
    keeps: bool = False
    outside: bool = False
    replicated: bool = False

    def part(self, weight: Weight) -> Weight:
        """A rank's part of a weight; buffers are whole everywhere."""
        return weight if weight.kind == "buffer" else part_of(weight, self.ranks)

    def stepped(self, trained: Iterable[Weight]) -> list[Weight]:
        """A rank's parts of what trains, as the optimizer has them."""
        return [self.part(weight) for weight in trained]

    def accumulates(self, adds: Adds) -> bool:
        """Whether a gradient is added to the one that waits as it comes."""
        return adds == "whole" and self.reduced == self.computed

    def unit(self, weights: Iterable[Weight]) -> Unit:
        """The unit of one layer's `weights`."""
        some = [w for w in weights if w.kind != "buffer"]
        parts = [(w, self.ranks * numel(one.shape) * one.copies) for w in some for one in (self.part(w),)]
        whole = sum(int(elements * self.gathered(w)) for w, elements in parts)
        return Unit(
            whole=whole,
            buffer=whole if self.ranks > 1 else 0,
            cast=whole // self.ranks if self.casts else 0,
            gradients=sum(elements for w, elements in parts if w.trained),
        )

    def root(self, weights: Iterable[Weight]) -> Unit:
        """The unit of all that is outside the layers, where that is one."""
        return Unit() if self.apart else self.unit(w for w in weights if w.layers is None)

    def arranged(self, runs: Runs, root: Unit, adds: Adds = "") -> Runs:
        """The runs with what the ranks gather and reduce; what becomes of their gradients is `adds`. The whole `root` is not counted."""
        pieces = [(replace(run), times) for run, number in runs for times in edges(number)]
        units = [root if self._rooted(run) else self.unit(weights_of(run)) for run, _ in pieces]
        waiting: list[tuple[Key, int]] = []
        for index in range(len(pieces) - 1, -1, -1):
            run, unit = pieces[index][0], units[index]
            before = units[index - 1] if index else Unit()
            after = units[index + 1] if index + 1 < len(units) else Unit()
            self._forward(run, unit, before)
            self._backward(run, unit, before, Unit() if after is root else after, adds)
            own = self._own(run, adds)
            if self._rooted(run):
                waiting += own
            if not self._rooted(run) or index == 0:
                self._reduce(run, unit, waiting if self._rooted(run) else own, adds)
        return pieces

    def waiting(self, runs: Runs, root: Unit) -> int:
        """Bytes of whole gradients that wait for the last pass of a step."""
        units = sum(self.unit(weights_of(run)).gradients * times for run, times in runs if not self._rooted(run))
        return (units + root.gradients) * self.reduced

    def _own(self, run: Run, adds: Adds) -> list[tuple[Key, int]]:
        """The gradients of a run's weights that are reduced with its unit."""
        return [(key, nbytes) for what, _, key, nbytes in run.backward if what == "make" and key[0] == "w"]

    def _rooted(self, run: Run) -> bool:
        return not self.apart and _outside(run)

    def _stays(self, run: Run) -> bool:
        """Whether the unit of a run is whole from its forward to its backward pass."""
        return self.keeps or (run.first > 0 and _outside(run) and not self.always)

    def _forward(self, run: Run, unit: Unit, before: Unit) -> None:
        """The buffer of the unit `before` goes when this one is whole, or with the root's forward pass."""
        last = end(run) if self.outside else len(run.ops) - 1
        key, ends = self._keys(run), self._rooted(run) and run.first > 0
        held, buffer = (key(HELD), before.buffer), (key(BUFFER), 0 if ends else unit.buffer)
        cast, whole = (key(CAST), 0 if ends else unit.cast), (key(WHOLE), 0 if self._rooted(run) else unit.whole)
        entered = [*made(0, held, cast, buffer), *freed(0, cast), *made(0, whole)]
        left = freed(last, buffer)
        if ends:
            left += freed(last, held)
        else:
            entered += freed(0, held)
        if not self._stays(run):
            left += freed(last, whole)
        elif whole[1]:
            run.kept += unit.whole
        over = next((number for number, event in enumerate(run.forward) if event[1] > last), len(run.forward))
        run.forward = [*entered, *run.forward[:over], *left, *run.forward[over:]]

    def _backward(self, run: Run, unit: Unit, before: Unit, after: Unit, adds: Adds) -> None:
        """The unit is whole again; the unit `before` is gathered ahead; what the unit `after` reduces is held.

        Outside the layers that is when the gradient of the head's output is there: the loss comes before it.
        """
        at, key, stays = end(run), self._keys(run), self._rooted(run) or self._stays(run)
        held = after.gradients * self.reduced * (adds != "wait")
        ahead = 0 if self.keeps else before.buffer
        again = self.always and run.first > 0 if self._rooted(run) else not stays
        entered = made(at, (key(REDUCED), held), (key(BUFFER), unit.buffer * again), (key(WHOLE), unit.whole * (not stays)))
        entered += [*freed(at, (key(BUFFER), unit.buffer * again)), *made(at, (key(AHEAD), ahead))]
        left = freed(0, (key(WHOLE), unit.whole * (not self._rooted(run))), (key(REDUCED), held), (key(AHEAD), ahead))
        begin(run, at, entered)
        run.backward += left

    def _reduce(self, run: Run, unit: Unit, own: Sequence[tuple[Key, int]], adds: Adds) -> None:
        """Whole gradients become a rank's part of them; the last unit's, which is reduced when the backward pass is over, go last."""
        elements = unit.gradients // self.ranks
        waiting: tuple[Key, int] = ("w", -2 - 2 * run.first), unit.gradients * self.reduced
        reducing = self._keys(run)(REDUCING), self._reducing(unit)
        kept: tuple[Key, int] = ("x" if adds == "parts" else "s", -1 - run.first), elements * self.gradient
        output = self._keys(run)(OUTPUT), elements * self.reduced * (self.gradient != self.reduced)
        if self.replicated and adds != "wait":
            output = ("s", -2 - run.first), output[1] or kept[1] * (adds == "parts")
        if adds == "wait":
            events = [*made(0, waiting), *freed(0, *own)]
        else:
            gone = freed(0, *own, *([waiting] if adds == "whole" else []))
            events = [
                *made(0, reducing),
                *(gone if run.first else []),
                *made(0, output, kept),
                *freed(0, *([] if self.replicated else [output])),
            ]
            events += [*([] if run.first else gone), *freed(0, reducing, *([kept] if adds == "parts" else []))]
        run.backward += events
        run.gradients = sum(nbytes * (1 if what == "make" else -1) for what, _, (kind, _), nbytes in run.backward if kind in "ws")

    def _reducing(self, unit: Unit) -> int:
        """Bytes of the tensor that gradients are copied to, to be reduced."""
        return unit.gradients * self.reduced

    def _keys(self, run: Run) -> Callable[[int], Key]:
        """Names of what a run gathers and reduces."""
        return lambda number: ("u" if number < HELD else "a", 8 * run.first + number)


def weights_of(run: Run) -> Iterable[Weight]:
    return {id(w): w for op in run.ops for w in op.weights}.values()


def end(run: Run) -> int:
    """The last op of a layer; outside the layers the last that has weights."""
    ops = range(len(run.ops) - 1, -1, -1)
    return next((at for at in ops if run.ops[at].weights), 0) if _outside(run) else len(run.ops) - 1


def _outside(run: Run) -> bool:
    return all(weight.layers is None for weight in weights_of(run))


def edges(times: int) -> Sequence[int]:
    """The first and the last of alike runs have other neighbours."""
    return (1, times - 2, 1) if times > 2 else (1,) * times


def begin(run: Run, at: int, events: Sequence[Event]) -> None:
    """Put `events` where the backward pass comes to the op of number `at`."""
    start = next((number for number, event in enumerate(run.backward) if event[1] <= at and event[2] != END), 0)
    run.backward = [*run.backward[:start], *events, *run.backward[start:]]


def made(at: int, *blocks: tuple[Key, int]) -> list[Event]:
    return [("make", at, key, nbytes) for key, nbytes in blocks if nbytes]


def freed(at: int, *blocks: tuple[Key, int]) -> list[Event]:
    return [("free", at, key, nbytes) for key, nbytes in blocks if nbytes]
