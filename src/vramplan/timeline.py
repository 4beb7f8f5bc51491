"""The timeline: a training run's allocations and frees in their order, for the allocator's simulation.

A sweep has the events of one run of each kind of layer; here they are unrolled over all layers, two steps long: the first makes the
optimizer's states, the second is what all later ones are like. Blocks are those that torch's allocator is asked for.

It does not know what happened before the weights were there, nor how far other streams run behind (but FSDP1's gathers).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .allocator import ALLOC, FREE, STREAM, Event
from .runs import END, Key, Run
from .sweep import Sweep
from .tensors import Op

Name = tuple[Key, int]
"""A tensor or gradient, and the number of its layer among those of its kind."""


def timeline(
    resident: Iterable[int],
    passes: Sequence[Sweep],
    *,
    states: Iterable[int],
    step: Iterable[int],
    between: Sweep | None = None,
    workspaces: tuple[int, int] = (0, 0),
    steps: int = 2,
    wrapped: Iterable[tuple[Sequence[int], int]] = (),
) -> list[Event]:
    """Events of `steps` training steps.

    `resident`: bytes of each weight; `passes`: the forward and backward passes of a step; `states`: bytes of each of the optimizer's
    states, made in the first step; `step`: what each optimizer step makes and frees; `between`: a forward pass that keeps nothing, run
    between each forward pass and its backward pass; `workspaces`: what the first matrix product takes for good in the thread of the
    forward pass and in that of the backward pass, where it lies among the blocks that are alive then; `wrapped`: bytes of the tensors of
    each unit of FSDP1, and of the part of it that stays.
    """
    run = _Timeline(workspaces)
    for tensors, part in wrapped:
        run.wrap(tensors, part)
    for nbytes in resident:
        run.alloc(nbytes)
    for number in range(steps):
        gradients = [block for swept in passes for block in run.one_pass(swept, between)]
        if number == 0:
            for nbytes in states:
                run.alloc(nbytes)
        for block in [run.alloc(nbytes) for nbytes in step]:
            run.drop(block)
        for block in gradients:
            run.drop(block)
    return run.events


STREAMS = {"a": 1, "f": 1, "s": 2}
"""The streams in which FSDP gathers and reduces, by the kind of what is made there. The host runs ahead, so that what FSDP1 frees (`f`) is
in use on the GPU still when it asks for the next one, and goes then: it lets two gathers be under way, and waits for the third (pytorch
2.13 `distributed/fsdp/_limiter_utils.py`)."""


BUCKET = 250 << 20
"""Bytes from which on a bucket of tensors is sent (pytorch 2.13 `distributed/fsdp/_init_utils.py` PARAM_BROADCAST_BUCKET_SIZE)."""


class _Timeline:
    """Blocks by name; a block is freed when the last that holds it lets go."""

    def __init__(self, workspaces: tuple[int, int] = (0, 0)) -> None:
        self.awaited = dict(enumerate(workspaces))
        self.workspaces: list[int] = []
        self.events: list[Event] = []
        self.holders: list[int] = []
        self.blocks: dict[Name, int] = {}
        self.latest: dict[Key, int] = {}
        self.ahead: dict[int, int] = {}
        self.flat: set[int] = set()
        self.lingering: list[int] = []

    def alloc(self, nbytes: int, kind: str = "") -> int:
        block = len(self.holders)
        self.holders.append(1)
        self.events.append((ALLOC + STREAM * STREAMS.get(kind, 0), block, nbytes))
        if kind == "f":
            self.flat.add(block)
            self.events += [(FREE, lingers, 0) for lingers in self.lingering]
            self.lingering.clear()
        return block

    def drop(self, block: int) -> None:
        self.holders[block] -= 1
        if not self.holders[block] and block in self.flat:
            self.lingering.append(block)
        elif not self.holders[block]:
            self.events.append((FREE, block, 0))

    def wrap(self, tensors: Sequence[int], part: int) -> None:
        """FSDP1 makes a unit: its tensors are moved to the GPU, sent to all ranks in buckets and put together; of that a part stays
        (pytorch 2.13 `distributed/fsdp/_init_utils.py`, _init_param_handle_from_module; `csrc/distributed/c10d/comm.cpp`).
        """
        moved = [self.alloc(nbytes) for nbytes in tensors]
        buckets: list[list[int]] = [[]]
        for nbytes in tensors:
            if sum(buckets[-1]) >= BUCKET:
                buckets.append([])
            buckets[-1].append(nbytes)
        for bucket in [self.alloc(sum(some)) for some in buckets if len(some) > 1]:
            self.drop(bucket)
        flat = self.alloc(sum(tensors))
        if part:
            self.alloc(part)
        for block in (flat, *moved):
            self.drop(block)

    def before(self, op: Op, thread: int) -> None:
        """The first product of a thread (0: forward, 1: backward) takes its workspace."""
        if op.flops and self.awaited.get(thread):
            self.workspaces.append(self.alloc(self.awaited.pop(thread)))

    def one_pass(self, swept: Sweep, between: Sweep | None) -> list[int]:
        """Forward and backward; returns the blocks of the weights' gradients."""
        self.blocks, self.latest = {name: block for name, block in self.blocks.items() if name[0][0] == "w"}, {}
        self.ahead = {}
        first = len(self.holders)
        order, count = self._all_forward(swept)
        if between:
            self._aside(between)
        stream: int | None = None
        gradients: list[int] = []
        for run, number in reversed(order):
            if number + 1 == count[run.first]:
                for tensor in run.outlasting:
                    self._free(self.latest.get(("t", id(tensor))))
            stream = self._backward(run, number, stream, gradients)
        for block in set(range(first, len(self.holders))) - {*gradients, *self.workspaces}:
            while self.holders[block]:
                self.drop(block)
        return gradients

    def _aside(self, swept: Sweep) -> None:
        """A forward pass of which nothing is left."""
        own, first = (self.blocks, self.latest), len(self.holders)
        self.blocks, self.latest = {}, {}
        self._all_forward(swept)
        for block in range(first, len(self.holders)):
            while self.holders[block]:
                self.drop(block)
        self.blocks, self.latest = own

    def _all_forward(self, swept: Sweep) -> tuple[list[tuple[Run, int]], dict[int, int]]:
        """A forward pass; returns its runs in order, each with its number, and how often each kind ran."""
        late = _late(swept)
        count: dict[int, int] = {}
        order: list[tuple[Run, int]] = []
        for run, times in swept.runs:
            done = count.get(run.first, 0)
            order += [(run, done + n) for n in range(times)]
            count[run.first] = done + times
        cached = [block for run, number in order for block in self._forward(run, number, late)]
        for block in cached:
            self.drop(block)
        return order, count

    def _forward(self, run: Run, number: int, late: dict[int, list[Key]]) -> list[int]:
        """One run forward; returns what stays until the forward pass ends."""
        single = {id(t) for t in run.own if t.repeats < run.times}
        cached = {id(t) for t in run.own if t.cached} if run.checkpointed else set()
        staying: list[int] = []
        dying = [(at, key) for at in range(len(run.ops)) for key in late.get(run.first + at, ())] if number == 0 else []
        for what, at, key, nbytes in run.forward:
            while dying and dying[0][0] < at:
                self._free(self.latest.get(dying.pop(0)[1]))
            if key[1] in single and number:
                continue
            self.before(run.ops[at], 0)
            name = key, number
            if what == "make":
                self.blocks[name] = self.latest[key] = self._continued(run, number, key) or self.alloc(nbytes, key[0])
            elif what == "hold":
                block = self.blocks.setdefault(name, self.latest["t", key[1]])
                self.holders[block] += 1
            elif key[1] in cached:
                staying.append(self.blocks[name])
            else:
                self._free(self.blocks.get(name))
        for _, key in dying:
            self._free(self.latest.get(key))
        return staying

    def _continued(self, run: Run, number: int, key: Key) -> int | None:
        """The block of a repeated layer's input: the output of the layer before, which lets go of it unless backward needs it."""
        if key != ("t", id(run.entry)) or run.entry.follows is None:
            return None
        out = run.ops[-1].writes[0].storage
        block = self.latest.get(("t", id(out if number else run.entry.follows)))
        if block is None or not self.holders[block]:
            return None
        if number == 0 or (run.keeps(out) and not run.checkpointed):
            self.holders[block] += 1
        return block

    def _free(self, block: int | None) -> None:
        if block is not None and self.holders[block]:
            self.drop(block)

    def _backward(self, run: Run, number: int, stream: int | None, gradients: list[int]) -> int | None:
        """One run backward from the gradient of its output; returns that of its input."""
        single = {id(t) for t in run.own if t.repeats < run.times}
        stream = self.ahead.pop(id(run.end), stream)
        made: list[int] = []
        for what, at, key, nbytes in run.backward:
            name = key, number
            if (key[0] == "t" and key[1] in single and number) or key[0] == "l":
                continue
            self.before(run.ops[at], 1)
            if what == "make":
                block = stream if key == END and stream is not None else self.alloc(nbytes, key[0])
                self.blocks[name] = block
                (gradients if key[0] in "ws" else made if key[0] == "g" else []).append(block)
            elif what == "hold":
                self.holders[self.blocks[name]] += 1
            else:
                self._free(self.blocks.get(name))
        left = self.blocks.get((run.entry_gradient, number)) if run.entry_gradient else None
        waits = {tensor: self.blocks[key, number] for tensor, (key, _) in run.ahead.items() if tensor not in self.ahead}
        for block in made:
            if block != left and block not in waits.values():
                self._free(block)
        self.ahead |= waits
        return left


def _late(swept: Sweep) -> dict[int, list[Key]]:
    """Op -> tensors of earlier pieces whose last use it is."""
    late: dict[int, list[Key]] = {}
    for run in {run.first: run for run, _ in swept.runs}.values():
        for t in run.own:
            if t.last >= run.first + len(run.ops) and (run.checkpointed or not run.keeps(t)) and t not in run.outlasting:
                late.setdefault(t.last, []).append(("t", id(t)))
    return late
