"""ggml's graph allocator: how large each device's buffer gets when the tensors of a graph take blocks of it and give them back.

Source: llama.cpp 0.5.0 `ggml/src/ggml-alloc.c` (`ggml_gallocr_alloc_graph_impl`, `ggml_dyn_tallocr_alloc`). Chunks, into which a buffer
larger than a device's largest is cut, are left out. Layers that are alike ask for the same blocks: what one of them does is done again
for the others, and where the free blocks are those of a layer before, so is all that followed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .llama_cpp_schedule import Key, Node, Step, assign, split

COPIES = 4
"""Of each input where devices work in a pipeline: GGML_SCHED_MAX_COPIES."""
ALIGNMENT = 128
"""Of tensors in a buffer: ggml-cuda.cu, ggml_backend_cuda_buffer_type_get_alignment. (The CPU's is 32.)"""

Block = tuple[int, int]
"""Its address and its bytes."""
Free = tuple[tuple[Block, ...], ...]
"""The free blocks of each device."""


@dataclass(slots=True)
class Buffer:
    """One device's buffer as it is planned: free blocks by address, the last one without an end; best fit."""

    free: list[tuple[int, int]] = field(default_factory=lambda: [(0, 1 << 60)])
    size: int = 0

    def take(self, nbytes: int) -> int:
        """The address of a block of `nbytes`: in the smallest free block that holds it, of equals the later, the last one only for want."""
        free = self.free
        best, least = len(free) - 1, 1 << 62
        for i in range(best):
            room = free[i][1]
            if nbytes <= room <= least:
                best, least = i, room
        at, room = free[best]
        if room == nbytes:
            del free[best]
        else:
            free[best] = (at + nbytes, room - nbytes)
        self.size = max(self.size, at + nbytes)
        return at

    def give(self, at: int, nbytes: int) -> None:
        """Free a block, joined with its neighbours as ggml_dyn_tallocr_free_bytes does: blocks without bytes keep others apart."""
        free = self.free
        for i, (start, room) in enumerate(free):
            if start + room == at:
                room += nbytes
                if i + 1 < len(free) and start + room == free[i + 1][0]:
                    room += free.pop(i + 1)[1]
                free[i] = (start, room)
                return
            if at + nbytes == start:
                free[i] = (at, nbytes + room)
                if i and sum(free[i - 1]) == at:
                    free[i - 1 : i + 1] = [(free[i - 1][0], free[i - 1][1] + nbytes + room)]
                return
        free.insert(bisect_left(free, (at, 0)), (at, nbytes))


def buffers(nodes: Sequence[Node], inputs: Sequence[Node], gpus: int, *, pipelined: bool, layers: Sequence[int]) -> list[int] | None:
    """Bytes of each device's compute buffer (the host's is the last) for a graph of `nodes` in their order. Devices may be `pipelined`.

    The graph may have fewer segments than the model has layers: `layers` names for each layer the segment that is like it. None where one
    segment does not speak for others, for it has to do with layers far away.
    """
    assign(nodes, gpus)
    events = plan(*split(nodes, inputs, COPIES if pipelined else 1))
    times = Counter(layers)
    if len(times) < len(layers) and not all(near(event, times[event.segment]) for event in events):
        return None
    return replay(events, layers, gpus)


@dataclass(slots=True)
class Event:
    """`nbytes` taken on a device for the block called `key`, or (None) that block given back, in a segment of the graph.

    Or the block that was called `before` gets a new name: what is computed over a tensor of another layer.
    """

    segment: int
    device: int
    nbytes: int | None
    key: Key
    before: Key | None = None


def plan(first: Sequence[Node], steps: Sequence[Step]) -> list[Event]:
    """What is taken, by node, and given back, with its last reader; a tensor that is computed over another one has its block."""
    events: list[Event] = []

    def place(node: Node) -> None:
        if node.own or node.view is not None or node.stored or node.leaf in ("weight", "cache") or node.device is None:
            return
        node.own = True
        if node.inplace:
            for read in node.reads:
                if reusable(node, read):
                    node.slot, read.own = read.slot, False
                    if read.slot[0] != node.born[0]:
                        node.slot = (*node.born, -1)
                        events.append(Event(node.segment, node.device, None, node.slot, read.slot))
                    return
        if node.slot[2] < 0:
            node.slot = (*node.born, -1)
        events.append(Event(node.segment, node.device, aligned(node.nbytes), node.slot))

    for node in first:
        node.segment = -1
        place(node)
    for node, keeps in steps:
        if node.view is not None and not keeps:
            node.view.views += 1
        for read in node.reads:
            read.children += 1
    for node, keeps in steps:
        if not keeps:
            place(node)
        for read in node.reads:
            read.children -= 1
            if read.children == 0 and read.views == 0:
                gone = read.view or read
                if read.view is not None:
                    gone.views -= 1
                if gone.children == 0 and gone.views == 0 and gone.own and not gone.output:
                    events.append(Event(node.segment, gone.device or 0, None, gone.slot))
                    gone.own = False
    return events


def replay(events: Sequence[Event], layers: Sequence[int], host: int) -> list[int] | None:
    """How large the buffers get: the events before the layers, those of each layer's segment, those after them.

    None where a segment gives back what the one before it did not take, or leaves what the next one does not give back.
    """
    planned = [Buffer() for _ in range(host + 1)]
    held: dict[Key, Block] = {}
    segments: dict[int, list[Event]] = {}
    for event in events:
        segments.setdefault(event.segment, []).append(event)
    order = [-1, *layers, max(layers, default=-1) + 1]
    known: dict[Free, tuple[int, Mapping[Key, Block]]] = {}
    place = 0
    while place < len(order):
        number, segment = place - 1, order[place]
        moved = number - segment
        for event in segments.get(segment, ()):
            key = renamed(event.key, moved) if moved else event.key
            if event.nbytes is not None:
                held[key] = planned[event.device].take(event.nbytes), event.nbytes
                continue
            block = held.pop(renamed(event.before or event.key, moved), None)
            if block is None:
                return None
            if event.before:
                held[key] = block
            else:
                planned[event.device].give(*block)
        place += 1
        skipped = _again(known, place, order, tuple(tuple(buffer.free) for buffer in planned), held)
        if skipped:
            held = {renamed(key, skipped): block for key, block in held.items()}
            place += skipped
    return [buffer.size for buffer in planned] if len(held) == len(left(events)) else None


def left(events: Sequence[Event]) -> set[Key]:
    """The blocks that are never given back: outputs."""
    found: set[Key] = set()
    for event in events:
        if event.nbytes is None:
            found.discard(event.before or event.key)
        if event.nbytes is not None or event.before:
            found.add(event.key)
    return found


def _again(
    known: dict[Free, tuple[int, Mapping[Key, Block]]], place: int, order: Sequence[int], now: Free, held: Mapping[Key, Block]
) -> int:
    """How many layers do what was done before: from a state that was met at a place already (`known`) the same layers follow again.

    The state is what is free, `now`, and what is `held`.
    """
    before, then = known.get(now, (place, held))
    known[now] = place, dict(held)
    period, end = place - before, place
    if not period or {renamed(key, period): block for key, block in then.items()} != held:
        return 0
    while end < len(order) and order[end] == order[end - period]:
        end += 1
    return (end - place) // period * period


def near(event: Event, times: int) -> bool:
    """Whether an event may happen so many `times`: what it is of was made in its layer or beside it, or before the layers for one alone.

    Before the layers anything may.
    """
    layer, before = event.key[0], (event.before or event.key)[0]
    if event.segment < 0:
        return True
    if layer < 0 or before < 0:
        return times <= 1
    return abs(layer - event.segment) <= 2 and abs(before - event.segment) <= 2


def renamed(key: Key, moved: int) -> Key:
    """What a block is called `moved` layers later."""
    return (key[0] + moved, key[1], key[2]) if moved and key[0] >= 0 else key


def reusable(node: Node, read: Node) -> bool:
    """Whether `node` may be computed over `read`: no view, of one size, on one device, with no other reader."""
    alone = read.own and not read.output and read.children == 1 and not read.views
    return alone and read.device == node.device and read.nbytes == node.nbytes


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
