"""The sweep: how much memory a training step's activations and gradients take, from the tape's ops in their order.

Layers of a kind run one after another: one of them is swept, event by event (`forward.py`, `backward.py`), and over them memory is linear,
so that the worst layer is the first or the last. `timeline.py` unrolls the same events over all layers, for the allocator.

It knows shapes only: no optimizer, no allocator, no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .backward import run_backward
from .forward import run_forward, walk
from .runs import GATHERED, Checkpointing, Event, Run, Runs, runs_of
from .tape import Tape
from .tensors import Tensor, Weight


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
    runs = runs_of(tape, checkpointing)
    seen: set[int] = set()
    for run in reversed(list({id(run): run for run, _ in runs}.values())):
        run_forward(run, checkpointing)
        run_backward(run, gradient_itemsize, accumulates, stepping, seen)
    runs = arrange(runs) if arrange else runs
    forward, saved = _forward_peak(runs)
    backward, gradients = _backward_peak(runs, saved + sum(t.nbytes for t in tape.tensors if t.held))
    offloaded = sum(run.offloaded * times for run, times in runs)
    return Sweep(forward=forward, backward=backward, saved=saved, gradients=gradients, offloaded=offloaded, runs=runs)


def forward_only(tape: Tape) -> Sweep:
    """A forward pass that keeps nothing for backward (`torch.no_grad`) but, until it ends, autocast's copies of weights."""
    runs = runs_of(tape, None)
    for run in {id(run): run for run, _ in runs}.values():
        run.checkpointed, run.forward = True, walk(run, keeping=False)
        run.cached = sum(t.nbytes for t in run.own if t.cached)
    nothing = Peak(saved=0, gradients=0, transient=0, where="")
    return Sweep(forward=_forward_peak(runs, keeping=False)[0], backward=nothing, saved=0, gradients=0, offloaded=0, runs=runs)


def _size(peak: Peak) -> int:
    return peak.nbytes


def _most(events: Iterable[Event], start: int = 0) -> tuple[int, int, int]:
    """Most bytes alive while `events` happen: what is gathered and everything else, and the op where."""
    best, alive, gathered = (start, 0, 0), start, 0
    for what, at, key, nbytes in events:
        if what == "make":
            alive += nbytes
            gathered += nbytes if key[0] in GATHERED else 0
            if alive > best[0] + best[1]:
                best = alive - gathered, gathered, at
        elif what == "free":
            alive -= nbytes
            gathered -= nbytes if key[0] in GATHERED else 0
    return best


def _before(runs: Runs, number: int) -> Iterable[Run]:
    """The pieces that ran before the first of the one of `number`, each once."""
    return {run.first: run for run, _ in runs[:number] if run.first < runs[number][0].first}.values()


def _late(run: Run, earlier: Iterable[Run], keeping: bool) -> list[Tensor]:
    """Tensors of earlier pieces that are there when `run` begins, beside what backward needs, the first layer's input among that."""
    there = [one for one in (*earlier, run) if keeping and not one.offloaded]
    kept = {id(one.entry.follows) for one in there if one.checkpointed or (one.keeps(one.entry) and not one.entry.spared)}
    some = [t for piece in earlier for t in piece.own if t.last >= run.first and id(t) not in kept]
    return [t for t in some if not (t.cached or (keeping and t.saved))]


def _forward_peak(runs: Runs, *, keeping: bool = True) -> tuple[Peak, int]:
    """The forward pass's peak, and what is saved when it ends."""
    peak, kept, cached = Peak(saved=0, gradients=0, transient=0, where=""), 0, 0
    pieces = [run.first for run, _ in runs]
    most: dict[int, tuple[int, int, int]] = {}
    for number, (run, times) in enumerate(runs):
        if run.first not in pieces[:number]:
            kept += run.once
        if id(run) not in most:
            late = _late(run, _before(runs, number), keeping)
            ends: list[Event] = [("free", t.last - run.first, ("t", id(t)), t.nbytes) for t in late if t.last < run.first + len(run.ops)]
            events = sorted([*run.forward, *ends], key=lambda event: event[1]) if ends else run.forward
            most[id(run)] = _most(events, sum(t.nbytes for t in late))
        nbytes, gathered, op = most[id(run)]
        spared = run.spared if keeping and run.first not in pieces[:number] else 0
        before = kept + (run.kept + run.cached) * (times - 1) + cached - (spared if times > 1 else 0)
        peak = max(peak, Peak(saved=before, gradients=0, transient=nbytes, gathered=gathered, where=run.ops[op].name), key=_size)
        kept += run.kept * times - spared
        if run.first not in pieces[number + 1 :]:
            kept += sum(t.nbytes for t in run.outlasting)
        cached += run.cached * times
    return peak, kept


def _backward_peak(runs: Runs, kept: int) -> tuple[Peak, int]:
    """The backward pass's peak, and the gradients that it leaves. `kept` is what the forward pass saved."""
    peak, gradients = Peak(saved=0, gradients=0, transient=0, where=""), 0
    pieces, waiting = [run.first for run, _ in runs], dict[int, int]()
    worst = {id(run): _worst(run) for run in {id(run): run for run, _ in runs}.values()}
    for number, (run, times) in reversed(list(enumerate(runs))):
        if run.first not in pieces[number + 1 :]:
            kept -= sum(t.nbytes for t in run.outlasting)
        waiting.pop(id(run.end), None)
        transient, own, gathered, op = worst[id(run)]
        for done in {0, times - 1}:
            left, sofar = kept - run.kept * done + min(transient, 0), gradients + run.gradients * done
            made = max(transient, 0) + sum(waiting.values())
            at = Peak(saved=left, gradients=sofar + own, transient=made, gathered=gathered, where=run.ops[op].name)
            peak = max(peak, at, key=_size)
        kept -= run.kept * times + (run.once - run.spared if run.first not in pieces[:number] else 0)
        gradients += run.gradients * times
        waiting |= {tensor: nbytes for tensor, (_, nbytes) in run.ahead.items()}
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
        elif kind in GATHERED:
            gathered += change
        if alive > most:
            most, best = alive, (alive - weights - gathered, weights, gathered, at)
    return best
