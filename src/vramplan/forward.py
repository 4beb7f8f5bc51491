"""One run's forward pass, event by event: what it makes, keeps for backward and frees, and how a checkpointed one is made again.

It knows shapes only, and nothing of the order of the runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from .runs import Checkpointing, Event, Run
from .tensors import Tensor


def run_forward(run: Run, checkpointing: Checkpointing | None) -> None:
    """What one run keeps and what it makes and frees; a checkpointed layer is walked twice."""
    run.once = sum(t.nbytes * t.saved for t in run.own if 0 < t.saved < run.times and t.repeats < run.times)
    run.outlasting = [t for t in run.own if 0 < t.saved < run.times and t.repeats >= run.times]
    if not run.checkpointed or checkpointing is None:
        run.cached = sum(t.nbytes for t in run.own if t.cached and not run.keeps(t))
        run.kept, run.forward = sum(t.nbytes for t in run.own if run.keeps(t)), walk(run, keeping=True, held=[t for t in run.own if t.held])
        return
    outputs = {id(t.storage): t.storage for op in run.ops if checkpointing.keeps(op) for t in op.writes if not t.cached}
    outputs.pop(id(run.entry), None)
    held = [*outputs.values()] if checkpointing.offloaded else [run.entry, *outputs.values()]
    pinned = [t for t in run.own if t.pinned]
    run.cached = sum(t.nbytes for t in run.own if t.cached)
    run.forward = walk(run, keeping=False, held=held, pinned=pinned)
    there = frozenset([id(run.entry), *outputs])
    run.rebuild = walk(run, keeping=True, there=there, held=[run.entry] if run.keeps(run.entry) else [], stops=checkpointing.stops)
    run.kept = sum(t.nbytes for t in (*held, *pinned))
    if checkpointing.offloaded:
        run.offloaded = run.entry.nbytes
        run.rebuild.insert(0, ("make", 0, ("t", id(run.entry)), run.entry.nbytes))


def walk(
    run: Run,
    *,
    keeping: bool,
    there: frozenset[int] = frozenset(),
    held: Sequence[Tensor] = (),
    pinned: Sequence[Tensor] = (),
    stops: bool = True,
) -> list[Event]:
    """The events of one forward walk: saved tensors stay (`keeping`) or die at their last use.

    One that starts from what is `there` already ends, if it `stops`, when all that backward needs is there (torch `utils/checkpoint.py`).
    """
    ops, first, own = run.ops, run.first, {id(t) for t in run.own}
    end = needed(run)[1] if there and stops else len(ops)
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


def needed(run: Run) -> tuple[int, int]:
    """The last op whose backward pass needs a saved tensor, be it a weight; and how many ops have to run for it."""
    for at in range(len(run.ops) - 1, -1, -1):
        op = run.ops[at]
        needs = op.keeps or (op.weights and op.pins is None and any(read.storage.grad for read in op.reads))
        if op.writes[0].grad and needs:
            made = {id(t) for t in op.writes}
            return at, at + 1 if not at or any(id(t) in made for t in op.keeps) else at
    return 0, len(run.ops)
