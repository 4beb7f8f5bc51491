"""ggml's scheduler and graph allocator: which device computes a node of a graph, what is copied between them, how large the buffers get.

Knows nodes with a size in bytes, and where weights, caches and inputs are. Source: llama.cpp 0.5.0 `ggml/src/ggml-backend.cpp`
(`ggml_backend_sched_split_graph`) and `ggml/src/ggml-alloc.c` (`ggml_gallocr_alloc_graph_impl`, `ggml_dyn_tallocr_alloc`). Taken as given:
every device runs every operation. Chunks, into which a buffer larger than a device's largest is cut, are left out.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field

OFFLOADED = 32
"""Rows from which on a GPU takes an operation over weights in host memory: `op_offload_min_batch_size` of ggml-cuda and ggml-vulkan."""
COPIES = 4
"""Of each input where devices work in a pipeline: GGML_SCHED_MAX_COPIES."""
ALIGNMENT = 128
"""Of tensors in a buffer: ggml-cuda.cu, ggml_backend_cuda_buffer_type_get_alignment. (The CPU's is 32.)"""


@dataclass(slots=True, eq=False)
class Node:
    """A tensor: what an operation computes from `reads`, or a `leaf` (weight, cache, input), or a view of another one.

    `nbytes` are those that its buffer gives it; `rows` tell whether a GPU takes the operation when its weights are in host memory. It may
    be computed over one of what it reads (`inplace`). `device` counts GPUs from 0, the host is the last; None is left to the scheduler. An
    `output` is never freed.
    """

    name: str
    nbytes: int = 0
    reads: tuple[Node, ...] = ()
    inplace: bool = False
    rows: int = 0
    device: int | None = None
    leaf: str = ""
    view: Node | None = None
    output: bool = False
    children: int = 0
    views: int = 0
    at: int = -1
    own: bool = False


@dataclass(slots=True)
class Buffer:
    """One device's buffer as it is planned: free blocks by address, the last one without an end; best fit."""

    free: list[tuple[int, int]] = field(default_factory=lambda: [(0, 1 << 60)])
    size: int = 0

    def take(self, nbytes: int) -> int:
        """The address of a block of `nbytes`: in the smallest free block that holds it, of equals the later, the last one only for want."""
        best = len(self.free) - 1
        for i in range(best):
            room = self.free[i][1]
            if room >= nbytes and (best == len(self.free) - 1 or room <= self.free[best][1]):
                best = i
        at, room = self.free[best]
        if room == nbytes:
            del self.free[best]
        else:
            self.free[best] = (at + nbytes, room - nbytes)
        self.size = max(self.size, at + nbytes)
        return at

    def give(self, at: int, nbytes: int) -> None:
        """Free a block, joined with its neighbours."""
        insort(self.free, (at, nbytes))
        i = self.free.index((at, nbytes))
        for left in (i, i - 1):
            if 0 <= left < len(self.free) - 1 and sum(self.free[left]) == self.free[left + 1][0]:
                self.free[left : left + 2] = [(self.free[left][0], self.free[left][1] + self.free[left + 1][1])]


def buffers(nodes: Sequence[Node], inputs: Sequence[Node], gpus: int, *, pipelined: bool) -> list[int]:
    """Bytes of each device's compute buffer (the host's is the last) for a graph of `nodes` in their order. Devices may be `pipelined`."""
    assign(nodes, gpus)
    return allocate(*split(nodes, inputs, COPIES if pipelined else 1), gpus)


def assign(nodes: Sequence[Node], host: int) -> None:
    """Give each node its device: where its weights or its cache are, else that of its neighbours, GPUs before the host."""
    ops = [node for node in nodes if node.view is None]
    for node in ops:
        if node.device is None:
            weight = next((read for read in node.reads if read.leaf == "weight"), None)
            if weight is not None:
                node.device = 0 if weight.device == host and host and node.rows >= OFFLOADED else weight.device
    for spread in (range(host), range(host + 1)):
        for order in (ops, ops[::-1]):
            current = None
            for node in order:
                if node.device is not None:
                    current = node.device if node.device in spread else None
                elif current is not None:
                    node.device = current
    for node in nodes:
        if node.view is not None and node.device is None:
            node.device = root(node).device


def root(node: Node) -> Node:
    """What `node` is a view of, or itself."""
    while node.view is not None:
        node = node.view
    return node


Step = tuple[Node, bool]
"""A node, and whether it only keeps what it reads alive until here."""


def split(nodes: Sequence[Node], inputs: Sequence[Node], copies: int) -> tuple[list[Node], list[Step]]:
    """The leaves to be placed first, and the nodes with copies of what each split reads from other devices, made where the split begins."""
    first: list[Node] = []
    steps: list[Step] = []
    copied: dict[tuple[int, int | None], Node] = {}
    part: list[Step] = []
    taken: list[Node] = []
    current = next((node.device for node in nodes if node.view is None), None)

    def close() -> None:
        for source in taken:
            steps.append((Node("kept", reads=(source,), view=source), True))
            steps.append((copied[id(source), current], False))
        steps.extend(part)
        part.clear()
        taken.clear()

    for node in nodes:
        if node.view is not None:
            part.append((node, False))
            continue
        moved = [read for read in node.reads if root(read).device != node.device]
        anew = node.device == current and taken and any(read.leaf == "weight" for read in moved)
        if node.device != current or anew:
            close()
            current = node.device
        for read in moved:
            if (id(read), current) not in copied:
                copied[id(read), current] = Node(f"{read.name} copied", read.nbytes, device=current, output=copies > 1)
                taken.append(read)
        node.reads = tuple(copied.get((id(read), current), read) if read in moved else read for read in node.reads)
        part.append((node, False))
    close()
    if copies > 1:
        for leaf in inputs:
            leaf.output = True
            first += [leaf, *(Node(leaf.name, leaf.nbytes, device=leaf.device, output=True) for _ in range(copies - 1))]
        for made in copied.values():
            first += [made, *(Node(made.name, made.nbytes, device=made.device, output=True) for _ in range(copies - 1))]
    return [*first, *(leaf for leaf in inputs if leaf not in first)], steps


def allocate(first: Sequence[Node], steps: Sequence[Step], host: int) -> list[int]:
    """Place every node, free each with its last reader, and say how large the buffers got."""
    planned = [Buffer() for _ in range(host + 1)]

    def place(node: Node) -> None:
        if node.own or node.view is not None or node.leaf in ("weight", "cache") or node.device is None:
            return
        node.own = True
        if node.inplace:
            for read in node.reads:
                if reusable(node, read):
                    node.at, read.own = read.at, False
                    return
        node.at = planned[node.device].take(aligned(node.nbytes))

    for node in first:
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
                    planned[gone.device or 0].give(gone.at, aligned(gone.nbytes))
                    gone.own = False
    return [buffer.size for buffer in planned]


def reusable(node: Node, read: Node) -> bool:
    """Whether `node` may be computed over `read`: no view, of one size, on one device, with no other reader."""
    alone = read.own and not read.output and read.children == 1 and not read.views
    return alone and read.device == node.device and read.nbytes == node.nbytes


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
