"""One run's backward pass, event by event: its ops in reverse.

Each makes the gradients of its inputs and of its trained weights, then its own gradient and what only it still needed are freed, as torch's
autograd engine does (`torch/csrc/autograd/engine.cpp`, `input_buffer.cpp`: a second gradient of the same tensor is added in place).

It knows shapes only, and nothing of the order of the runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .dim import numel
from .forward import needed
from .runs import END, Event, Key, Run
from .tensors import Op, Tensor, Weight


@dataclass(slots=True)
class _Gradient:
    """A gradient tensor: several ops may hold it, as an addition hands the same one to both its inputs."""

    key: Key
    nbytes: int
    holders: int = 1


def _kept(run: Run, op: Op) -> tuple[Tensor, ...]:
    """What an op's backward pass keeps of the run that goes before it: of a checkpointed one not what is pinned, which is older."""
    return (*op.keeps, *op.also, *(() if run.checkpointed else op.pins or ()))


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
        self.arrived = {id(run.end): _Gradient(END, run.end.nbytes)} if run.end.grad else {}
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
            asked = next((n for n, event in enumerate(events) if event[1] <= needed(run)[0] and event[2] != END), len(events))
            events[asked:asked] = run.rebuild
        released = {id(t) for some in self.release.values() for t in some}
        rest = [t for t in run.own if run.keeps(t) and id(t) not in released]
        events += [("free", 0, ("t", id(t)), t.nbytes) for t in ([*rest, run.entry] if run.checkpointed else rest)]
        left = self.arrived.get(id(run.entry))
        run.entry_gradient = left.key if left else None
        older = {key: gradient for key, gradient in self.arrived.items() if key not in self.own and gradient is not left}
        run.ahead = {key: (gradient.key, gradient.nbytes) for key, gradient in older.items()}
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
