"""The sweep: how much memory a training step's activations and gradients take, from the tape's ops in their order.

The forward pass keeps what backward needs. The backward pass runs the ops in reverse: each makes the gradients of its inputs and of its
trained weights, then its own gradient and what only it still needed are freed, as torch's autograd engine does
(`torch/csrc/autograd/engine.cpp`, `input_buffer.cpp`: a second gradient of the same tensor is added in place). Layers of a kind run one
after another: one of them is swept, event by event, and over them memory is linear, so that the worst layer is the first or the last.
`timeline.py` unrolls the same events over all layers, for the allocator.

It knows shapes only: no optimizer, no allocator, no engine.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Most bytes above what is there all the time: saved activations, gradients of weights so far, what was gathered from other ranks or
    goes to them, everything else, and the op where.
    """

    saved: int
    gradients: int
    transient: int
    where: str
    gathered: int = 0

    @property
    def nbytes(self) -> int:
        return self.saved + self.gradients + self.transient + self.gathered


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What one forward and backward pass takes: its peaks, what is saved between them, the gradients that it leaves.

    `offloaded` bytes go to host memory; `runs` are its pieces in their order, each with how often it runs on end.
    """

    forward: Peak
    backward: Peak
    saved: int
    gradients: int
    offloaded: int
    runs: Runs


def sweep(
    tape: Tape,
    *,
    gradient_itemsize: Callable[[Weight], int],
    checkpointing: Checkpointing | None = None,
    accumulates: bool = False,
    stepping: Callable[[Weight], int] | None = None,
    arrange: Callable[[Runs], Runs] | None = None,
) -> Sweep:
    """Sweep the tape's ops.

    A weight's gradient has `gradient_itemsize(weight)` bytes per element. With `accumulates` the gradients of the pass before are there
    already (counted by the caller), and each new one lives only until it is added. With `stepping` each weight's optimizer steps as soon as
    its gradient is there, taking so many bytes, and frees it; a tied weight's when both parts of it are there. `arrange` puts what several
    ranks do between the events of the runs.
    """
    runs = _runs(tape, checkpointing)
    seen: set[int] = set()
    for run in reversed(list({id(run): run for run, _ in runs}.values())):
        _forward(run, checkpointing)
        _backward(run, gradient_itemsize, accumulates, stepping, seen)
    runs = arrange(runs) if arrange else runs
    forward, saved = _forward_peak(runs)
    backward, gradients = _backward_peak(runs, saved)
    offloaded = sum(run.offloaded * times for run, times in runs)
    return Sweep(forward=forward, backward=backward, saved=saved, gradients=gradients, offloaded=offloaded, runs=runs)


def forward_only(tape: Tape) -> Sweep:
    """A forward pass that keeps nothing for backward (`torch.no_grad`) but, until it ends, autocast's copies of weights."""
    runs = _runs(tape, None)
    for run in {id(run): run for run, _ in runs}.values():
        run.checkpointed, run.forward = True, _walk(run, keeping=False)
        run.cached = sum(t.nbytes for t in run.own if t.cached)
    nothing = Peak(saved=0, gradients=0, transient=0, where="")
    return Sweep(forward=_forward_peak(runs, keeping=False)[0], backward=nothing, saved=0, gradients=0, offloaded=0, runs=runs)


def _size(peak: Peak) -> int:
    return peak.nbytes


def _runs(tape: Tape, checkpointing: Checkpointing | None) -> Runs:
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


# ---- one run -----------------------------------------------------------------------------
def _forward(run: Run, checkpointing: Checkpointing | None) -> None:
    """What one run keeps and what it makes and frees; a checkpointed layer is walked twice."""
    run.once = sum(t.nbytes * t.saved for t in run.own if 0 < t.saved < run.times and t.repeats < run.times)
    run.outlasting = [t for t in run.own if 0 < t.saved < run.times and t.repeats >= run.times]
    if not run.checkpointed or checkpointing is None:
        run.kept, run.forward = sum(t.nbytes for t in run.own if run.keeps(t)), _walk(run, keeping=True)
        return
    outputs = {id(t.storage): t.storage for op in run.ops if checkpointing.keeps(op) for t in op.writes if not t.cached}
    outputs.pop(id(run.entry), None)
    held = [run.entry, *outputs.values()]
    pinned = [t for t in run.own if t.pinned]
    run.cached = sum(t.nbytes for t in run.own if t.cached)
    run.forward = _walk(run, keeping=False, held=held, pinned=pinned)
    there = frozenset(id(t) for t in held)
    run.rebuild = _walk(run, keeping=True, there=there, held=[run.entry] if run.keeps(run.entry) else [])
    run.kept = sum(t.nbytes for t in (*held, *pinned))
    if checkpointing.offloaded:
        run.offloaded = run.entry.nbytes
        run.kept -= run.entry.nbytes
        run.rebuild.insert(0, ("make", 0, ("t", id(run.entry)), run.entry.nbytes))


def _walk(
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


def _backward(
    run: Run,
    itemsize: Callable[[Weight], int],
    accumulates: bool,
    stepping: Callable[[Weight], int] | None,
    seen: set[int],
) -> None:
    """One run in reverse. A tied weight gets two gradients, which are added out of place: for a moment there are three of them. The first
    waits for the second, also where the sum is then added to that of the pass before.
    """
    events = run.backward
    own = {id(t) for t in run.own}
    release: dict[int, list[Tensor]] = {}
    unpinned: dict[int, list[Tensor]] = {}
    for index, tensor in {id(t): (i, t) for i, op in reversed(list(enumerate(run.ops))) for t in op.pins or ()}.values():
        unpinned.setdefault(index, []).append(tensor)
    for index, tensor in {id(t): (i, t) for i, op in reversed(list(enumerate(run.ops))) for t in _kept(run, op)}.values():
        if run.keeps(tensor):
            release.setdefault(index, []).append(tensor)
    end = _end(run.ops)
    arrived = {id(end): _Gradient(END, end.nbytes)} if end.grad else {}
    events += [("make", len(run.ops) - 1, END, end.nbytes)] if end.grad else []
    for index in range(len(run.ops) - 1, -1, -1):
        op = run.ops[index]
        gradient = arrived.pop(id(op.writes[0]), None)
        if gradient is None:
            continue
        within: list[tuple[Key, int]] = []
        steps: list[Event] = []
        kept: list[Event] = [("free", index, ("t", id(t)), t.nbytes) for t in release.get(index, ()) if id(t) in own]
        if run.checkpointed:
            kept += [("free", index, ("p", id(t)), t.nbytes) for t in unpinned.get(index, ())]
        if op.overwrites == "kept":
            events += kept
        elif op.overwrites == "gradient":
            events.append(("free", index, gradient.key, gradient.nbytes))
        for number, read in enumerate(op.reads):
            storage = read.storage
            if not storage.grad:
                continue
            known = id(storage) in arrived
            if op.passes and read.nbytes == op.writes[0].nbytes:
                if not known:
                    gradient.holders += 1
                    arrived[id(storage)] = gradient
            elif known:
                within.append((("x", number), read.nbytes))
            else:
                arrived[id(storage)] = made = _Gradient(("g", id(storage)), read.nbytes)
                events.append(("make", index, made.key, made.nbytes))
        for number, weight in enumerate(op.weights, len(op.reads)):
            if not weight.trained:
                continue
            nbytes = numel(weight.shape) * weight.copies * itemsize(weight)
            if id(weight) in seen:
                events.append(("make", index, ("x", number), nbytes))
                steps += _sum(index, number, nbytes)
                steps += [("free", index, ("w", id(weight)), nbytes)] if accumulates else []
                run.gradients -= nbytes if accumulates else 0
            if stepping and (id(weight) in seen or not weight.tied):
                steps += _step(index, number, stepping(weight), nbytes)
            if id(weight) in seen:
                continue
            if accumulates and not weight.tied:
                within.append((("x", number), nbytes))
            elif stepping and not weight.tied:
                events.append(("make", index, ("x", number), nbytes))
            else:
                run.gradients += nbytes
                events.append(("make", index, ("w", id(weight)), nbytes))
            seen.add(id(weight))
        if op.backward_workspace:
            within.append((("x", -len(op.reads) - len(op.weights) - 2), op.backward_workspace))
        events += [("make", index, key, nbytes) for key, nbytes in within]
        events += [("free", index, key, nbytes) for key, nbytes in within]
        gradient.holders -= 1
        if not gradient.holders and op.overwrites != "gradient":
            events.append(("free", index, gradient.key, gradient.nbytes))
        if op.overwrites != "kept":
            events += kept
        events += steps
    if run.checkpointed:
        asked = next((n for n, event in enumerate(events) if event[1] <= _needed(run)[0] and event[2] != END), len(events))
        events[asked:asked] = run.rebuild
    released = {id(t) for some in release.values() for t in some}
    rest = [t for t in run.own if run.keeps(t) and id(t) not in released]
    events += [("free", 0, ("t", id(t)), t.nbytes) for t in ([*rest, run.entry] if run.checkpointed else rest)]
    left = arrived.get(id(run.entry))
    run.entry_gradient = left.key if left else None


def _sum(index: int, number: int, nbytes: int) -> list[Event]:
    """A tied weight's second gradient is added to the first, in a third tensor, when the op's backward pass is over."""
    made: Key = ("x", -number - 1)
    return [("make", index, made, nbytes), ("free", index, made, nbytes), ("free", index, ("x", number), nbytes)]


def _step(index: int, number: int, taken: int, gradient: int) -> list[Event]:
    """A weight's optimizer steps when the op's backward pass is over (as post-accumulate-grad hooks do), and its gradient goes."""
    made: Key = ("x", -number - 1)
    return [("make", index, made, taken), ("free", index, made, taken), ("free", index, ("x", number), gradient)]


# ---- over all runs -----------------------------------------------------------------------
def _most(events: Iterable[Event], start: int = 0) -> tuple[int, int, int]:
    """Most bytes alive while `events` happen: what is gathered and everything else, and the op where."""
    best, alive, gathered = (start, 0, 0), start, 0
    for what, at, key, nbytes in events:
        if what == "make":
            alive += nbytes
            gathered += nbytes if key[0] in "ua" else 0
            if alive > best[0] + best[1]:
                best = alive - gathered, gathered, at
        elif what == "free":
            alive -= nbytes
            gathered -= nbytes if key[0] in "ua" else 0
    return best


def _before(runs: Runs, number: int) -> Iterable[Run]:
    """The pieces that ran before the one of `number`, each once."""
    return {run.first: run for run, _ in runs[:number] if run.first != runs[number][0].first}.values()


def _late(run: Run, earlier: Iterable[Run], keeping: bool) -> list[Tensor]:
    """Tensors of earlier pieces that are there when `run` begins, beside what backward needs."""
    return [t for piece in earlier for t in piece.own if t.last >= run.first and not (t.cached or (keeping and t.saved))]


def _forward_peak(runs: Runs, *, keeping: bool = True) -> tuple[Peak, int]:
    """The forward pass's peak, and what is saved when it ends."""
    peak, kept, cached = Peak(saved=0, gradients=0, transient=0, where=""), 0, 0
    pieces = [run.first for run, _ in runs]
    for number, (run, times) in enumerate(runs):
        if run.first not in pieces[:number]:
            kept += run.once + sum(t.nbytes for t in run.outlasting)
        late = _late(run, _before(runs, number), keeping)
        ends: list[Event] = [("free", t.last - run.first, ("t", id(t)), t.nbytes) for t in late if t.last < run.first + len(run.ops)]
        events = sorted([*run.forward, *ends], key=lambda event: event[1]) if ends else run.forward
        nbytes, gathered, op = _most(events, sum(t.nbytes for t in late))
        spared = run.spared if run.first not in pieces[:number] else 0
        before = kept + (run.kept + run.cached) * (times - 1) + cached - (spared if times > 1 else 0)
        peak = max(peak, Peak(saved=before, gradients=0, transient=nbytes, gathered=gathered, where=run.ops[op].name), key=_size)
        kept += run.kept * times - spared
        cached += run.cached * times
    return peak, kept


def _backward_peak(runs: Runs, kept: int) -> tuple[Peak, int]:
    """The backward pass's peak, and the gradients that it leaves. `kept` is what the forward pass saved."""
    peak, gradients = Peak(saved=0, gradients=0, transient=0, where=""), 0
    pieces = [run.first for run, _ in runs]
    for number, (run, times) in reversed(list(enumerate(runs))):
        if run.first not in pieces[number + 1 :]:
            kept -= sum(t.nbytes for t in run.outlasting)
        transient, own, gathered, op = _worst(run)
        for done in {0, times - 1}:
            left, sofar = kept - run.kept * done + min(transient, 0), gradients + run.gradients * done
            at = Peak(saved=left, gradients=sofar + own, transient=max(transient, 0), gathered=gathered, where=run.ops[op].name)
            peak = max(peak, at, key=_size)
        kept -= run.kept * times + (run.once - run.spared if run.first not in pieces[:number] else 0)
        gradients += run.gradients * times
    return peak, gradients


def _worst(run: Run) -> tuple[int, int, int, int]:
    """Where most is alive in one backward run: bytes of the rest, of gradients of weights, of what is gathered, and the op."""
    alive = weights = gathered = 0
    most, best = 0, (0, 0, 0, len(run.ops) - 1)
    for what, at, (kind, _), nbytes in run.backward:
        change = nbytes if what == "make" else -nbytes if what == "free" else 0
        alive += change
        if kind in "ws":
            weights += change
        elif kind in "ua":
            gathered += change
        if alive > most:
            most, best = alive, (alive - weights - gathered, weights, gathered, at)
    return best
