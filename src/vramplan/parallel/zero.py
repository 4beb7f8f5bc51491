"""ZeRO, DeepSpeed's data parallelism: ranks share the optimizer (stage 1), gradients (2), and weights (3), and train 16-bit weights.

Stages 1 and 2 keep all weights. What trains is one flat tensor for each of the optimizer's groups, cut into even parts, wherever a weight
ends; a rank keeps the gradients of each weight that its part touches, whole. Those that fit go to a bucket and are reduced with it; a
larger one stays as it is until the next one comes. Stage 1 keeps all gradients until the last pass of a step, which reduces them
(DeepSpeed 0.19.8 `runtime/zero/stage_1_and_2.py`). Stage 3 cuts each weight, and its gradient. Modules gather weights when they need them,
and more ahead, in the order of the step before, so fast that soon as many weights are whole as may be (`max_live_parameters`), or all of
them; small ones always are (`runtime/zero/stage3.py`, `partitioned_param_coordinator.py`).

What it does not know: offload, quantised communication (ZeRO++), MiCS, how far streams run ahead of each other, and which rank is asked:
what is said is enough for each.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ..dim import numel
from ..runs import Event, Key, Run, Runs
from ..tensors import Weight
from .sharded import Adds, Unit, edges, weights_of

SOURCES = {
    1: "DeepSpeed 0.19.8 deepspeed/runtime/zero/stage_1_and_2.py",
    2: "DeepSpeed 0.19.8 deepspeed/runtime/zero/stage_1_and_2.py",
    3: "DeepSpeed 0.19.8 deepspeed/runtime/zero/stage3.py",
}
LIVE = 10**9
"""Elements of weights that may be whole before another is gathered ahead (`stage3_max_live_parameters`, zero/config.py)."""
GROUP = 10**9
"""Elements of a rank's part from which on stage 3 steps what it has so far, weight by weight (`sub_group_size`, zero/config.py)."""
ITEM = 2
"""Bytes of an element of a weight and of its gradient."""
NORM = 8
"""Bytes of an element as the norm of a gradient is taken (`get_norm_dtype`, deepspeed/runtime/utils.py: float64)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Zero:
    """`stage` over `ranks`. Elements: `bucket` of gradients that are reduced together, `small` of the largest weight that stays whole."""

    stage: int
    ranks: int
    bucket: int
    small: int

    def part(self, weight: Weight) -> Weight:
        """What a rank keeps of a weight: under stage 3 as many elements, in one row."""
        if self.stage < 3 or weight.kind == "buffer":
            return weight
        return replace(weight, copies=1, shape=(-(-numel(weight.shape) * weight.copies // self.ranks),))

    def stepped(self, trained: Iterable[Weight]) -> list[Weight]:
        """A rank's parts of what trains, as the optimizer has them: flat, matrices apart from vectors, which have no weight decay."""
        return [replace(_FLAT, shape=(elements,)) for some in _groups(trained) for elements in self._parts(some)]

    def _parts(self, weights: Sequence[Weight]) -> Iterator[int]:
        if self.stage < 3:
            yield 2 * -(-sum(weight.numel for weight in weights) // (2 * self.ranks))
            return
        group = 0
        for elements in _in_order(weights):
            group += -(-elements // self.ranks)
            if group >= GROUP:
                yield group
                group = 0
        if group:
            yield group

    def held(self, trained: Iterable[Weight]) -> int:
        """Bytes of the gradients of a rank's part at most: under stages 1 and 2 of all weights that lie in it, be it with one element."""
        if self.stage == 3:
            return sum(weight.numel for weight in self.stepped(trained)) * ITEM
        return sum(self._touched(some) for some in _groups(trained)) * ITEM

    def _touched(self, weights: Sequence[Weight]) -> int:
        ends = list(accumulate(_in_order(weights)))
        part = next(self._parts(weights))
        most = 0
        for start in range(0, ends[-1], part):
            first, last = bisect_right(ends, start), bisect_right(ends, min(start + part, ends[-1]) - 1)
            most = max(most, ends[last] - (ends[first - 1] if first else 0))
        return most

    def norm(self, trained: Iterable[Weight]) -> int:
        """Bytes that the norm of the gradients takes at most: one of them after the other, as far as it is the rank's."""
        largest = max(numel(weight.shape) * weight.copies for weight in trained)
        most = -(-largest // self.ranks) if self.stage == 3 else min(largest, max(weight.numel for weight in self.stepped(trained)))
        return most * NORM

    def always(self, weights: Iterable[Weight]) -> int:
        """Bytes of whole weights that stay, as they are small."""
        some = [weight for weight in weights if weight.kind != "buffer" and self._is_small(weight)]
        return sum(weight.numel for weight in some) * ITEM if self.stage == 3 and self.ranks > 1 else 0

    def accumulates(self, adds: Adds) -> bool:
        """Whether a gradient goes as soon as it is where it belongs."""
        return self.stage > 1 or adds == "whole"

    def root(self, weights: Iterable[Weight]) -> Unit:
        """No weights are gathered for the whole pass, as FSDP's root is."""
        return Unit()

    def waiting(self, runs: Runs, root: Unit) -> int:
        """Bytes of whole gradients that wait for the last pass of a step."""
        some = {id(w): w for run, _ in runs for w in weights_of(run) if w.trained}.values()
        return sum(weight.numel for weight in some) * ITEM

    def arranged(self, runs: Runs, root: Unit, adds: Adds = "") -> Runs:
        """The runs with what ranks gather and reduce; what becomes of their gradients is `adds`."""
        pieces = [(replace(run), times) for run, number in runs for times in edges(number)]
        if self.stage > 1:
            for run, _ in pieces:
                self._reduce(run)
        if self.stage < 3:
            self._collect(pieces, adds)
        elif self.ranks > 1:
            self._gather(pieces)
        return pieces

    def _collect(self, pieces: Runs, adds: Adds) -> None:
        """The gradients of the rank's part lie in one buffer, made for the first that is reduced; stage 1 reduces them at the very end."""
        trained = {id(w): w for run, _ in pieces for w in weights_of(run) if w.trained}.values()
        made: Event = ("make", 0, ("s", -1), self.held(trained))
        if self.stage == 1 and adds != "wait":
            run = pieces[0][0]
            run.backward = [*run.backward, made]
        elif self.stage == 2:
            run, at = next((r, n) for r, _ in reversed(pieces) for n, event in enumerate(r.backward) if _is_gradient(r, event))
            run.backward = [*run.backward[:at], made, *run.backward[at:]]
            run.gradients += made[3]

    def _reduce(self, run: Run) -> None:
        """A gradient that does not fit the bucket is there until the next one comes; then what waits in the bucket is put together."""
        events: list[Event] = []
        waits: Event | None = None
        for event in run.backward:
            what, at, _, nbytes = event
            if not _is_gradient(run, event):
                events.append(event)
            elif what == "make":
                events += [event, *([waits] if waits else [])]
                waits = ("free", at, event[2], nbytes) if nbytes > self.bucket * ITEM else None
                if waits and self.stage == 3:
                    events += [("make", at, _TOGETHER, self.bucket * ITEM), ("free", at, _TOGETHER, self.bucket * ITEM)]
            elif nbytes <= self.bucket * ITEM:
                events.append(event)
        run.backward = [*events, waits] if waits else events

    def _gather(self, pieces: Runs) -> None:
        """As many weights are whole as may be; towards the end of the backward pass as many as there are still to come."""
        seen: set[int] = set()
        live: list[int] = []
        largest = 0
        for run, times in pieces:
            some = [w for w in weights_of(run) if w.kind != "buffer" and not self._is_small(w) and (w.layers or id(w) not in seen)]
            seen |= {id(w) for w in some}
            here = [numel(w.shape) * w.copies for w in some]
            live.append((live[-1] if live else 0) + sum(here) * times)
            largest = max(largest, *here) if some and some[0].layers else largest
        key: Key = ("u", -1)
        for (run, _), sofar in zip(pieces, live, strict=True):
            whole, left = (min(elements, LIVE + largest) * ITEM for elements in (live[-1], sofar))
            run.forward = [("make", 0, key, whole), *run.forward, ("free", len(run.ops) - 1, key, whole)]
            run.backward = [("make", len(run.ops) - 1, key, left), *run.backward, ("free", 0, key, left)]

    def _is_small(self, weight: Weight) -> bool:
        return numel(weight.shape) * weight.copies <= self.small


_FLAT = Weight(name="partition", shape=(0,), kind="linear", part="other")
_TOGETHER: Key = ("a", -2)


def _groups(trained: Iterable[Weight]) -> list[list[Weight]]:
    """Matrices and vectors, as transformers' Trainer groups them for weight decay."""
    kinds: dict[bool, list[Weight]] = {}
    for weight in trained:
        kinds.setdefault(len(weight.shape) < 2, []).append(weight)
    return list(kinds.values())


def _in_order(weights: Sequence[Weight]) -> list[int]:
    """Elements of each weight in the order of the model: what is before the layers, layer by layer, what comes after."""
    begun, order = False, []
    for place, weight in enumerate(weights):
        begun = begun or weight.layers is not None
        layers: Iterable[float] = (float("inf") if begun else -1,) if weight.layers is None else weight.layers
        order += [(layer, place, numel(weight.shape) * weight.copies) for layer in layers]
    return [elements for _, _, elements in sorted(order)]


def _is_gradient(run: Run, event: Event) -> bool:
    """Whether it is about the gradient of a trained weight, which lives within the op that makes it."""
    _, at, (kind, number), _ = event
    op = run.ops[at]
    index = number - len(op.reads)
    return kind == "x" and 0 <= index < len(op.weights) and op.weights[index].trained
