"""Runs: one layer of each kind, and what is outside the layers, forward and backward, event by event.

The forward pass keeps what backward needs. The backward pass runs the ops in reverse: each makes the gradients of its inputs and of its
trained weights, then its own gradient and what only it still needed are freed, as torch's autograd engine does
(`torch/csrc/autograd/engine.cpp`, `input_buffer.cpp`: a second gradient of the same tensor is added in place).

It knows shapes only, and nothing of the order of the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from .dim import numel
from .tape import Op, Tape, Tensor, Weight

Key = tuple[str, int]
"""What an event is about, and its identity: `t` a tensor, `p` one that is pinned, `g` a gradient of one, `w` a weight's gradient, `x` what
lives within one op. With several ranks (`parallel/sharded.py`): `u` a unit that they gathered from each other, `a` what they gather it in,
`s` a rank's part of gradients."""
Event = tuple[Literal["make", "free", "hold"], int, Key, int]
"""What happens, at which op of the run, to what, and its bytes. `hold` keeps a tensor beyond its own `free`."""
END: Key = ("g", 0)
"""The gradient of a run's output, which the run after it made."""


def never(_: Op) -> bool:
    """No op's output is kept."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointing:
    """Layers that keep their input only and run forward again before their backward pass (Chen et al. 2016, arXiv:1604.06174).

    `every`: each k-th layer does, the others keep everything. `keeps`: ops whose outputs are kept too (selective checkpointing, torch
    `utils/checkpoint.py` create_selective_checkpoint_contexts). `offloaded`: the kept inputs lie in host memory.
    """

    every: int = 1
    keeps: Callable[[Op], bool] = never
    offloaded: bool = False


@dataclass(slots=True)
class Run:
    """One run of a kind of layer, or of what is outside the layers: its events, and their sums in bytes.

    It keeps `kept` until its backward pass, `cached` until the forward pass ends, `once` one time for all runs, and `offloaded` in host
    memory; a checkpointed layer's `rebuild` is part of its `backward`. `entry` is the tensor that it starts from; `outlasting` are
    those of its last run that the backward pass of what comes after needs.
    """

    ops: Sequence[Op]
    first: int
    times: int
    own: Sequence[Tensor]
    checkpointed: bool
    entry: Tensor
    forward: list[Event] = field(default_factory=list)
    rebuild: list[Event] = field(default_factory=list)
    backward: list[Event] = field(default_factory=list)
    outlasting: list[Tensor] = field(default_factory=list)
    entry_gradient: Key | None = None
    kept: int = 0
    once: int = 0
    cached: int = 0
    offloaded: int = 0
    gradients: int = 0

    def keeps(self, tensor: Tensor) -> bool:
        """Whether the backward pass of each run needs its own `tensor`."""
        return tensor.saved >= self.times or (tensor.pinned and not self.checkpointed)

    @property
    def spared(self) -> int:
        """Bytes of what the first of the runs need not keep: no gradient passes there, or its input is kept where it was made."""
        source = self.entry.follows or self.entry
        if self.checkpointed:
            return self.entry.nbytes if source.saved and not self.offloaded else 0
        kept = [t for t in self.own if self.keeps(t) and (t.spared or (t is self.entry and source.saved and source is not t))]
        return sum(t.nbytes for t in kept)


Runs = Sequence[tuple[Run, int]]
"""A tape's pieces in their order, each with how often it runs on end."""


def runs_of(tape: Tape, checkpointing: Checkpointing | None) -> Runs:
    """The tape's pieces in order, with how often each runs on end: of every k layers, the last is checkpointed.

    A checkpointed layer through which no gradient passes keeps nothing, as without.
    """
    by_birth: dict[int, list[Tensor]] = {}
    for tensor in tape.tensors:
        by_birth.setdefault(tensor.born, []).append(tensor)
    runs: list[tuple[Run, int]] = []
    for _, group in groupby(enumerate(tape.ops), key=lambda pair: pair[1].region):
        some = list(group)
        first, ops = some[0][0], [op for _, op in some]
        own = [tensor for index, _ in some for tensor in by_birth.get(index, ())]
        times, entry = ops[0].repeats, ops[0].reads[0].storage
        plain, recomputed = (Run(ops, first, times, own, checkpointed, entry) for checkpointed in (False, True))
        if checkpointing is None or not ops[0].in_layers or not _end(ops).grad:
            runs.append((plain, times))
        elif checkpointing.every == 1:
            runs.append((recomputed, times))
        else:
            runs += [(plain, checkpointing.every - 1), (recomputed, 1)] * (times // checkpointing.every)
            runs += [(plain, times % checkpointing.every)] * (times % checkpointing.every > 0)
    return runs


def _end(ops: Sequence[Op]) -> Tensor:
    """The output of a run: of its last op that a gradient comes to, else of the last."""
    return next((op.writes[0] for op in reversed(ops) if op.writes[0].grad), ops[-1].writes[0])


def run_forward(run: Run, checkpointing: Checkpointing | None) -> None:
    """What one run keeps and what it makes and frees; a checkpointed layer is walked twice."""
    run.once = sum(t.nbytes * t.saved for t in run.own if 0 < t.saved < run.times and t.repeats < run.times)
    run.outlasting = [t for t in run.own if 0 < t.saved < run.times and t.repeats >= run.times]
    if not run.checkpointed or checkpointing is None:
        run.kept, run.forward = sum(t.nbytes for t in run.own if run.keeps(t)), walk(run, keeping=True)
        return
    outputs = {id(t.storage): t.storage for op in run.ops if checkpointing.keeps(op) for t in op.writes if not t.cached}
    outputs.pop(id(run.entry), None)
    held = [run.entry, *outputs.values()]
    pinned = [t for t in run.own if t.pinned]
    run.cached = sum(t.nbytes for t in run.own if t.cached)
    run.forward = walk(run, keeping=False, held=held, pinned=pinned)
    there = frozenset(id(t) for t in held)
    run.rebuild = walk(run, keeping=True, there=there, held=[run.entry] if run.keeps(run.entry) else [])
    run.kept = sum(t.nbytes for t in (*held, *pinned))
    if checkpointing.offloaded:
        run.offloaded = run.entry.nbytes
        run.kept -= run.entry.nbytes
        run.rebuild.insert(0, ("make", 0, ("t", id(run.entry)), run.entry.nbytes))


def walk(
    run: Run, *, keeping: bool, there: frozenset[int] = frozenset(), held: Sequence[Tensor] = (), pinned: Sequence[Tensor] = ()
) -> list[Event]:
    """The events of one forward walk: saved tensors stay (`keeping`) or die at their last use.

    One that starts from what is `there` already ends when all that backward needs is there (torch `utils/checkpoint.py`, early stop).
    """
    ops, first, own = run.ops, run.first, {id(t) for t in run.own}
    end = _needed(run)[1] if there else len(ops)
    made: list[list[Tensor]] = [[] for _ in ops]
    freed: list[list[Tensor]] = [[] for _ in ops]
    holds: list[list[Tensor]] = [[] for _ in ops]
    for t in held:
        holds[t.born - first if id(t) in own else 0].append(t)
    for t in pinned:
        holds[t.born - first].append(t)
    for t in run.own:
        if t.born - first >= end:
            continue
        if id(t) not in there:
            made[t.born - first].append(t)
        if (keeping and run.keeps(t)) or (there and t is run.entry):
            continue
        if t.last < first + len(ops) or there:
            freed[end - 1 if t.pinned and there else min(t.last - first, end - 1)].append(t)
    events: list[Event] = []
    for at, op in enumerate(ops[:end]):
        events += [("make", at, ("t", id(t)), t.nbytes) for t in made[at]]
        events += [("hold", at, ("p" if t.pinned else "t", id(t)), t.nbytes) for t in holds[at]]
        if op.workspace:
            events += [("make", at, ("x", at), op.workspace), ("free", at, ("x", at), op.workspace)]
        events += [("free", at, ("t", id(t)), t.nbytes) for t in freed[at]]
    return events


def _needed(run: Run) -> tuple[int, int]:
    """The last op whose backward pass needs a saved tensor, be it a weight; and how many ops have to run for it."""
    for at in range(len(run.ops) - 1, -1, -1):
        op = run.ops[at]
        needs = op.keeps or (op.weights and op.pins is None and any(read.storage.grad for read in op.reads))
        if op.writes[0].grad and needs:
            made = {id(t) for t in op.writes}
            return at, at + 1 if not at or any(id(t) in made for t in op.keeps) else at
    return 0, len(run.ops)


@dataclass(slots=True)
class _Gradient:
    """A gradient tensor: several ops may hold it, as an addition hands the same one to both its inputs."""

    key: Key
    nbytes: int
    holders: int = 1


def _kept(run: Run, op: Op) -> tuple[Tensor, ...]:
    """What an op's backward pass keeps of the run that goes before it: of a checkpointed one not what is pinned, which is older."""
    return op.keeps if run.checkpointed else (*op.keeps, *(op.pins or ()))


def run_backward(
    run: Run,
    itemsize: Callable[[Weight], int],
    accumulates: bool,
    stepping: Callable[[Weight], int] | None,
    seen: set[int],
) -> None:
    """One run in reverse. A tied weight gets two gradients, which are added out of place: for a moment there are three of them. The first
    waits for the second, also where the sum is then added to that of the pass before. `seen` are weights that have a gradient.
    """
    run.backward += _Backward(run, itemsize, accumulates, stepping, seen).all()


class _Backward:
    """The events of one run's backward pass, op by op."""

    def __init__(
        self, run: Run, itemsize: Callable[[Weight], int], accumulates: bool, stepping: Callable[[Weight], int] | None, seen: set[int]
    ) -> None:
        self.run, self.itemsize, self.accumulates, self.stepping, self.seen = run, itemsize, accumulates, stepping, seen
        self.own = {id(t) for t in run.own}
        self.events: list[Event] = []
        end = _end(run.ops)
        self.arrived = {id(end): _Gradient(END, end.nbytes)} if end.grad else {}
        first = {id(t): (i, t) for i, op in reversed(list(enumerate(run.ops))) for t in _kept(run, op)}
        self.release = _by_op(pair for pair in first.values() if run.keeps(pair[1]))
        self.unpinned = _by_op({id(t): (i, t) for i, op in reversed(list(enumerate(run.ops))) for t in op.pins or ()}.values())

    def all(self) -> list[Event]:
        """From the gradient of the run's output to that of its input; a checkpointed run is rebuilt when something asks for it."""
        run, events, last = self.run, self.events, len(self.run.ops) - 1
        events += [("make", last, END, gradient.nbytes) for gradient in self.arrived.values()]
        for index in range(last, -1, -1):
            if (gradient := self.arrived.pop(id(run.ops[index].writes[0]), None)) is not None:
                self._op(index, run.ops[index], gradient)
        if run.checkpointed:
            asked = next((n for n, event in enumerate(events) if event[1] <= _needed(run)[0] and event[2] != END), len(events))
            events[asked:asked] = run.rebuild
        released = {id(t) for some in self.release.values() for t in some}
        rest = [t for t in run.own if run.keeps(t) and id(t) not in released]
        events += [("free", 0, ("t", id(t)), t.nbytes) for t in ([*rest, run.entry] if run.checkpointed else rest)]
        left = self.arrived.get(id(run.entry))
        run.entry_gradient = left.key if left else None
        return events

    def _op(self, index: int, op: Op, gradient: _Gradient) -> None:
        """Gradients of what the op read and of its weights; then its own goes, and what only it still needed."""
        kept: list[Event] = [("free", index, ("t", id(t)), t.nbytes) for t in self.release.get(index, ()) if id(t) in self.own]
        if self.run.checkpointed:
            kept += [("free", index, ("p", id(t)), t.nbytes) for t in self.unpinned.get(index, ())]
        if op.overwrites == "kept":
            self.events += kept
        elif op.overwrites == "gradient":
            self.events.append(("free", index, gradient.key, gradient.nbytes))
        within = self._inputs(index, op, gradient)
        added, steps = self._weights(index, op)
        within += added
        if op.backward_workspace:
            within.append((("x", -len(op.reads) - len(op.weights) - 2), op.backward_workspace))
        self.events += [("make", index, key, nbytes) for key, nbytes in within]
        self.events += [("free", index, key, nbytes) for key, nbytes in within]
        gradient.holders -= 1
        if not gradient.holders and op.overwrites != "gradient":
            self.events.append(("free", index, gradient.key, gradient.nbytes))
        if op.overwrites != "kept":
            self.events += kept
        self.events += steps

    def _inputs(self, index: int, op: Op, gradient: _Gradient) -> list[tuple[Key, int]]:
        """Gradients of what the op read: handed on, added to one that is there (these are returned), or new."""
        within: list[tuple[Key, int]] = []
        for number, read in enumerate(op.reads):
            storage = read.storage
            if not storage.grad:
                continue
            known = id(storage) in self.arrived
            if op.passes and read.nbytes == op.writes[0].nbytes:
                if not known:
                    gradient.holders += 1
                    self.arrived[id(storage)] = gradient
            elif known:
                within.append((("x", number), read.nbytes))
            else:
                self.arrived[id(storage)] = made = _Gradient(("g", id(storage)), read.nbytes)
                self.events.append(("make", index, made.key, made.nbytes))
        return within

    def _weights(self, index: int, op: Op) -> tuple[list[tuple[Key, int]], list[Event]]:
        """Gradients of trained weights: those that are added and gone with the op, and what happens when its backward pass is over."""
        within: list[tuple[Key, int]] = []
        steps: list[Event] = []
        for number, weight in enumerate(op.weights, len(op.reads)):
            if not weight.trained:
                continue
            nbytes = numel(weight.shape) * weight.copies * self.itemsize(weight)
            again = id(weight) in self.seen
            if again:
                self.events.append(("make", index, ("x", number), nbytes))
                steps += _sum(index, number, nbytes)
                steps += [("free", index, ("w", id(weight)), nbytes)] if self.accumulates else []
                self.run.gradients -= nbytes if self.accumulates else 0
            if self.stepping and (again or not weight.tied):
                steps += _step(index, number, self.stepping(weight), nbytes)
            if again:
                continue
            if self.accumulates and not weight.tied:
                within.append((("x", number), nbytes))
            elif self.stepping and not weight.tied:
                self.events.append(("make", index, ("x", number), nbytes))
            else:
                self.run.gradients += nbytes
                self.events.append(("make", index, ("w", id(weight)), nbytes))
            self.seen.add(id(weight))
        return within, steps


def _by_op(pairs: Iterable[tuple[int, Tensor]]) -> dict[int, list[Tensor]]:
    """Tensors by the index of the op that they belong to."""
    found: dict[int, list[Tensor]] = {}
    for index, tensor in pairs:
        found.setdefault(index, []).append(tensor)
    return found


def _sum(index: int, number: int, nbytes: int) -> list[Event]:
    """A tied weight's second gradient is added to the first, in a third tensor, when the op's backward pass is over."""
    made: Key = ("x", -number - 1)
    return [("make", index, made, nbytes), ("free", index, made, nbytes), ("free", index, ("x", number), nbytes)]


def _step(index: int, number: int, taken: int, gradient: int) -> list[Event]:
    """A weight's optimizer steps when the op's backward pass is over (as post-accumulate-grad hooks do), and its gradient goes."""
    made: Key = ("x", -number - 1)
    return [("make", index, made, taken), ("free", index, made, taken), ("free", index, ("x", number), gradient)]
