"""FSDP1: the weights of a unit lie end to end in one flat weight, of which each rank has an even part.

It is gathered straight into one tensor. Its gradient, of frozen parts too, is put together from those of its parts before it is reduced; a
unit that is frozen as a whole has none, and goes when the unit before it is whole already. PEFT makes each trained layer a unit of its own,
whole while its product runs, whose gradient is reduced at once (pytorch 2.13 `distributed/fsdp/_flat_param.py`, `_runtime_utils.py`; PEFT
0.21 `utils/other.py` fsdp_auto_wrap_policy).

What it does not know: hybrid sharding, the few bytes with which weights are aligned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..dim import Dim, numel
from ..runs import Event, Key, Run, Runs
from ..tensors import Weight
from .sharded import AHEAD, WHOLE, Adds, Sharding, Unit, begin, end, freed, made, weights_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat(Sharding):
    """Sharding with flat weights. With `leaves` each weight that trains is a unit of its own; with `prefetch` the unit before is gathered
    while one runs backward (BACKWARD_PRE).
    """

    leaves: bool = False
    prefetch: bool = False

    def part(self, weight: Weight) -> Weight:
        """As many elements of a weight for each rank, in one row."""
        if weight.kind == "buffer":
            return weight
        row = Dim(-(-numel(weight.shape) * weight.copies // self.ranks), "elements/ranks")
        return replace(weight, copies=1, shape=(row,) if len(weight.shape) == 1 else (Dim(1, "row"), row))

    def accumulates(self, adds: Adds) -> bool:
        """Gradients of passes before are added to the flat one when that is there."""
        return False

    def unit(self, weights: Iterable[Weight]) -> Unit:
        """The unit of one layer's `weights`; the largest of its leaves is whole with it."""
        some = [w for w in weights if w.kind != "buffer"]
        flat = [w for w in some if not self._leaf(w)]
        leaf = max((Sharding.unit(self, [w]).whole for w in some if self._leaf(w)), default=0)
        unit = Sharding.unit(self, flat)
        elements = sum(self.ranks * numel(self.part(w).shape) for w in flat) if unit.gradients else 0
        return replace(unit, whole=unit.whole + leaf, buffer=0, gradients=elements)

    def waiting(self, runs: Runs, root: Unit) -> int:
        """Bytes of whole gradients that wait for the last pass of a step."""
        leaves = {id(w): w for run, _ in runs for w in weights_of(run) if self._leaf(w)}
        return Sharding.waiting(self, runs, root) + sum(w.numel for w in leaves.values()) * self.computed

    def wrapped(self, parts: Sequence[Weight], nbytes: Callable[[Weight], int]) -> Iterator[tuple[list[int], int]]:
        """Bytes of the tensors of each unit and of the part of it that stays, in the order in which units are made: leaves before their
        layer, layers before the root. `parts` are a rank's, of `nbytes` in one layer.
        """
        flat = [w for w in parts if w.kind != "buffer"]
        layers = sorted({n for w in flat for n in w.layers or ()})
        for some in (*([w for w in flat if n in (w.layers or ())] for n in layers), [w for w in flat if w.layers is None]):
            yield from (([self.ranks * nbytes(w)], nbytes(w)) for w in some if self._leaf(w))
            rest = [nbytes(w) for w in some if not self._leaf(w)]
            yield [self.ranks * each for each in rest], sum(rest)

    def _leaf(self, weight: Weight) -> bool:
        return self.leaves and weight.trained

    def _own(self, run: Run, adds: Adds) -> list[tuple[Key, int]]:
        """Those of the flat weight; a leaf's becomes a rank's part as soon as it is there."""
        leaves = {("w", id(w)): self.ranks * numel(self.part(w).shape) for w in weights_of(run) if self._leaf(w)}
        events: list[Event] = []
        for event in run.backward:
            events.append(event)
            what, at, key, nbytes = event
            if what == "make" and key in leaves and adds != "wait":
                part: tuple[Key, int] = ("x" if adds == "parts" else "s", key[1]), leaves[key] // self.ranks * self.gradient
                events += [*made(at, part), *freed(at, (key, nbytes * (2 if adds == "whole" else 1)), *([part] if adds == "parts" else []))]
        run.backward = events
        return [own for own in Sharding._own(self, run, adds) if own[0] not in leaves]

    def _backward(self, run: Run, unit: Unit, before: Unit, after: Unit, adds: Adds) -> None:
        at, key, stays = end(run) if self.outside else len(run.ops) - 1, self._keys(run), self._rooted(run) or self._stays(run)
        late: tuple[Key, int] = ("l", run.first), 0 if after.gradients or self.keeps else after.whole
        ahead = key(AHEAD), before.whole * (self.prefetch and not self.keeps)
        begin(run, at, [*made(at, late, (key(WHOLE), unit.whole * (not stays))), *freed(at, late), *made(at, ahead)])
        run.backward += freed(0, ahead)

    def _reduce(self, run: Run, unit: Unit, own: Sequence[tuple[Key, int]], adds: Adds) -> None:
        """The parts' gradients are put together in the flat one first, while the weight is whole, and what was gathered ahead."""
        flat: tuple[Key, int] = ("w", -1 - 2 * run.first), unit.gradients * self.computed
        whole = self._keys(run)(WHOLE), unit.whole * (not self._rooted(run))
        ahead = [event for event in run.backward if event[0] == "free" and event[2] == self._keys(run)(AHEAD)]
        run.backward = [*(event for event in run.backward if event not in ahead), *made(0, flat), *freed(0, *own, whole)]
        Sharding._reduce(self, run, unit, [flat], adds)
        run.backward += ahead

    def _reducing(self, unit: Unit) -> int:
        """The flat gradient itself, unless it is reduced in another precision."""
        return 0 if self.computed == self.reduced else Sharding._reducing(self, unit)

    def _keys(self, run: Run) -> Callable[[int], Key]:
        return lambda number: ("f", 8 * run.first + number)
