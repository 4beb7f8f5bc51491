"""The forward pass of one pipeline stage: its layers, the embeddings where it is the first, the final norm, head and loss where the last.
Towers are on the first.

What comes from the stage before is a tensor of its own, made where it is first read; so is the gradient that comes back. What a stage hands
on is not kept: Megatron frees it once it is sent (`deallocate_pipeline_outputs`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterable
from dataclasses import replace

from ..errors import Unknown
from ..tape import Tape
from ..tensors import Op, Tensor, Weight


def depth_of(tape: Tape) -> int:
    """Layers of the language model."""
    return max((max(weight.layers) + 1 for weight in tape.weights if weight.layers and not weight.tower), default=0)


def stage_of(tape: Tape, layers: Container[int], *, first: bool, last: bool) -> Tape:
    """The ops of `layers`, of what comes before all of them (`first`) and of what comes after (`last`), with their weights and tensors.

    A tied head has its matrix on both. Raises Unknown where something stands between the layers.
    """
    regions = _regions(tape, layers, first, last)
    indices = [index for index, op in enumerate(tape.ops) if regions[op.region]]
    numbers = {index: n for n, index in enumerate(indices)}
    some = [tape.ops[index] for index in numbers]
    weights = {id(w): replace(w, layers=own) for w in tape.weights for own in (_own(w, layers, first),) if own != ()}
    tensors = {id(t): t for t in _used(tape, numbers)}
    copies = {key: _copy(t, indices, numbers, some, regions) for key, t in tensors.items()}
    for t in copies.values():
        t.base, t.follows = copies.get(id(t.base)), copies.get(id(t.follows))
    ops = [_op(op, regions[op.region], copies, weights) for op in some]
    for t in copies.values():
        t.saved = 0
        t.spared = t.spared and first  # what comes from another stage needs a gradient, whatever trains there
    for op in ops:
        for t in op.keeps:
            t.saved = max(t.saved, min(t.repeats, op.repeats))
    read = {id(weight) for op in ops for weight in op.weights}
    mine = [w for w in weights.values() if w.layers is not None or w.tower or id(w) in read]
    return replace(tape, ops=ops, tensors=list(copies.values()), weights=mine, caches=[])


def _regions(tape: Tape, layers: Container[int], first: bool, last: bool) -> dict[int, int]:
    """How often the ops of each region run on this stage."""
    found: dict[int, int] = {}
    indices = {op.region: _layers(op) for op in reversed(tape.ops) if _layers(op)}
    begin, end = min(indices), max(indices)
    for op in tape.ops:
        if op.region in indices:
            found[op.region] = sum(index in layers for index in indices[op.region])
        elif begin < op.region < end:
            raise Unknown(f"pipeline parallelism: what stands between the layers ({op.name}) has no stage by this version")
        else:
            found[op.region] = int(first if op.region < begin else last)
    return found


def _layers(op: Op) -> tuple[int, ...]:
    return next((weight.layers for weight in op.weights if weight.layers and not weight.tower), ())


def _own(weight: Weight, layers: Container[int], first: bool) -> tuple[int, ...] | None:
    if weight.tower:
        return weight.layers if first else ()
    return None if weight.layers is None else tuple(index for index in weight.layers if index in layers)


def _used(tape: Tape, numbers: Container[int]) -> Iterable[Tensor]:
    """Tensors that are made in ops that are here, or that these read."""
    for index, op in enumerate(tape.ops):
        if index in numbers:
            for t in (*op.reads, *op.writes, *op.keeps):
                yield t.storage
    yield from (t for t in tape.tensors if t.born in numbers)


def _copy(t: Tensor, indices: list[int], numbers: dict[int, int], ops: list[Op], regions: dict[int, int]) -> Tensor:
    """The tensor with its place among the ops that are here, and as many instances as they have."""
    born = numbers.get(t.born)
    if born is None:
        born = next(n for n, op in enumerate(ops) if any(some.storage is t for some in (*op.reads, *op.keeps)))
    last = bisect_right(indices, t.last) - 1
    times = regions[ops[born].region] if t.repeats > 1 else 1
    return replace(t, born=born, last=max(born, last), repeats=times)


def _op(op: Op, times: int, tensors: dict[int, Tensor], weights: dict[int, Weight]) -> Op:
    def own(some: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensors.get(id(t)) or replace(t, base=tensors[id(t.storage)]) for t in some)

    mine = tuple(weights[id(w)] for w in op.weights)
    return replace(
        op, reads=own(op.reads), writes=own(op.writes), weights=mine, keeps=own(op.keeps), repeats=times if op.repeats > 1 else 1
    )
