"""The sweep: how much memory a training step's activations and gradients take, from the tape's ops in their order.

The forward pass keeps what backward needs. The backward pass runs the ops in reverse: each makes the gradients of its inputs and of its
trained weights, then its own gradient and what only it still needed are freed, as torch's autograd engine does
(`torch/csrc/autograd/engine.cpp`, `input_buffer.cpp`: a second gradient of the same tensor is added in place). Layers of a kind run one
after another; within them the sweep goes op by op, and over them it is linear, so that the worst layer is the first or the last.

It knows shapes only: no optimizer, no allocator, no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from .tape import Op, Tape, Tensor, Weight, numel


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Most bytes above what is there all the time: saved activations, gradients of weights so far, everything else, and the op where."""

    saved: int
    gradients: int
    transient: int
    where: str

    @property
    def nbytes(self) -> int:
        return self.saved + self.gradients + self.transient


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What one forward and backward pass takes: its peaks, what is saved between them, and the gradients that it leaves."""

    forward: Peak
    backward: Peak
    saved: int
    gradients: int


@dataclass(slots=True)
class _Segment:
    """Ops of one layer of a kind (or outside the layers) and how often they run.

    A run keeps `kept` bytes until its backward pass and `cached` ones until the forward pass ends; `once` are kept once for all runs. A
    checkpointed layer keeps its input only; its backward pass first rebuilds the `rebuilt` bytes. `forward` and `backward` are where most
    is alive in one run.
    """

    ops: Sequence[Op]
    times: int
    first: int
    checkpointed: bool
    kept: int = 0
    once: int = 0
    cached: int = 0
    rebuilt: int = 0
    gradients: int = 0
    forward: tuple[int, str] = (0, "")
    rebuild: tuple[int, str] = (0, "")
    backward: tuple[int, int, str] = (0, 0, "")


@dataclass(slots=True)
class _Gradient:
    """A gradient tensor: several ops may hold it, as an addition hands the same one to both its inputs."""

    nbytes: int
    holders: int = 0


def sweep(tape: Tape, *, gradient_itemsize: Callable[[Weight], int], checkpointing: bool = False, accumulates: bool = False) -> Sweep:
    """Sweep the tape's ops, towers left out.

    A weight's gradient has `gradient_itemsize(weight)` bytes per element. With `checkpointing` a layer keeps its input only, and
    runs forward once more before its backward pass. With `accumulates` the gradients of the pass before are there already (counted by the
    caller), and each new one lives only until it is added.
    """
    segments = _segments(tape, checkpointing)
    seen: set[int] = set()
    for segment in segments:
        _forward(segment, tape.tensors)
    for segment in reversed(segments):
        _backward(segment, gradient_itemsize, accumulates, seen)
    forward = backward = Peak(saved=0, gradients=0, transient=0, where="")
    kept = cached = 0
    for segment in segments:
        before = kept + segment.once + segment.kept * (segment.times - 1) + cached + segment.cached * (segment.times - 1)
        cached += segment.cached * segment.times
        forward = max(forward, Peak(saved=before, gradients=0, transient=segment.forward[0], where=segment.forward[1]), key=_size)
        kept += segment.once + segment.kept * segment.times
    saved, gradients = kept, 0
    for segment in reversed(segments):
        transient, own, where = segment.backward
        for done in {0, segment.times - 1}:
            left, sofar = kept - segment.kept * done, gradients + segment.gradients * done
            backward = max(backward, Peak(saved=left, gradients=sofar + own, transient=transient, where=where), key=_size)
        kept -= segment.once + segment.kept * segment.times
        gradients += segment.gradients * segment.times
    return Sweep(forward=forward, backward=backward, saved=saved, gradients=gradients)


def _size(peak: Peak) -> int:
    return peak.nbytes


def _segments(tape: Tape, checkpointing: bool) -> list[_Segment]:
    numbered = [(index, op) for index, op in enumerate(tape.ops) if op.tower is None]
    segments = []
    for _, group in groupby(numbered, key=lambda pair: pair[1].region):
        some = list(group)
        first, op = some[0]
        segments.append(_Segment([op for _, op in some], op.repeats, first, checkpointing and op.in_layers))
    return segments


def _forward(segment: _Segment, tensors: Sequence[Tensor]) -> None:
    """What one run keeps, and most bytes alive at once in it: as it runs first, and as a checkpointed layer is rebuilt."""
    first, last = segment.first, segment.first + len(segment.ops) - 1
    own = [t for t in tensors if t.tower is None and first <= t.born <= last]
    segment.once = sum(t.nbytes * t.saved for t in own if 0 < t.saved < segment.times)
    segment.kept = sum(t.nbytes for t in own if t.saved >= segment.times)
    segment.forward = _most(segment, own, keeping=not segment.checkpointed)
    if segment.checkpointed:
        segment.rebuild = _most(segment, own, keeping=True)
        entry = segment.ops[0].reads[0].nbytes
        segment.kept, segment.rebuilt = entry, max(segment.kept - entry, 0)
        segment.cached = sum(t.nbytes for t in own if t.cached)


def _most(segment: _Segment, own: Sequence[Tensor], *, keeping: bool) -> tuple[int, str]:
    """Most bytes alive at an op of one run, where saved tensors stay (`keeping`) or die at their last use."""
    changes = [0] * (len(segment.ops) + 1)
    for t in own:
        changes[t.born - segment.first] += t.nbytes
        if not (keeping and t.saved >= segment.times):
            changes[min(t.last - segment.first, len(segment.ops) - 1) + 1] -= t.nbytes
    best, alive = (0, ""), 0
    for op, change in zip(segment.ops, changes, strict=False):
        alive += change
        best = max(best, (alive + op.workspace, op.name))
    return best


def _backward(segment: _Segment, itemsize: Callable[[Weight], int], accumulates: bool, seen: set[int]) -> None:
    """One run in reverse: bytes above what is kept, and the weights' gradients made until then, where their sum is largest.

    A tied weight gets two gradients, which are added out of place: for a moment there are three of them.
    """
    release: dict[int, int] = {}
    for index, tensor in {id(t): (i, t) for i, op in reversed(list(enumerate(segment.ops))) for t in op.keeps}.values():
        if tensor.saved >= segment.times:
            release[index] = release.get(index, 0) + tensor.nbytes
    end = segment.ops[-1].writes[0]
    arrived: dict[int, _Gradient] = {id(end): _Gradient(end.nbytes, 1)} if end.grad else {}
    alive = segment.rebuilt + sum(gradient.nbytes for gradient in arrived.values())
    weights = 0
    best = (max(alive, end.nbytes + segment.rebuild[0] - segment.kept), 0, segment.rebuild[1] or end.name)
    for index in range(len(segment.ops) - 1, -1, -1):
        op = segment.ops[index]
        gradient = arrived.pop(id(op.writes[0]), None)
        if gradient is None:
            continue
        made = 0
        for read in op.reads:
            storage = read.storage
            if not storage.grad:
                continue
            known = id(storage) in arrived
            if op.passes:
                if not known:
                    gradient.holders += 1
                    arrived[id(storage)] = gradient
                continue
            made += read.nbytes
            if not known:
                arrived[id(storage)] = _Gradient(read.nbytes, 1)
                alive += read.nbytes
                made -= read.nbytes
        for weight in op.weights:
            if weight.trained:
                nbytes = numel(weight.shape) * weight.copies * itemsize(weight)
                if accumulates:
                    made += nbytes
                elif id(weight) in seen:
                    made += 2 * nbytes
                else:
                    weights += nbytes
                seen.add(id(weight))
        best = max(best, (alive + made + op.backward_workspace, weights, op.name), key=lambda at: at[0] + at[1])
        gradient.holders -= 1
        if not gradient.holders:
            alive -= gradient.nbytes
        alive -= release.get(index, 0)
    segment.gradients, segment.backward = weights, best
