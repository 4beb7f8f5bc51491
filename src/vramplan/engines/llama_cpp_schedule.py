"""ggml's scheduler: which device computes a node of a graph, and what is copied between them.

Knows nodes with a size in bytes, and where weights, caches and inputs are. Source: llama.cpp 0.5.0 `ggml/src/ggml-backend.cpp`
(`ggml_backend_sched_split_graph`). Taken as given: every device runs every operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

OFFLOADED = 32
"""Rows from which on a GPU takes an operation over weights in host memory: `op_offload_min_batch_size` of ggml-cuda and ggml-vulkan."""

Key = tuple[int, int, int]
"""Of a block of memory: the layer in which its first tensor was made (-1: outside of them), that tensor's number there, and where it is a
copy, on which device (else -1)."""


@dataclass(slots=True, eq=False)
class Node:
    """A tensor: what an operation computes from `reads`, or a `leaf` (weight, cache, input, or `empty`: what nobody fills), or a view of
    another one.

    `nbytes` are those that its buffer gives it; `rows` tell whether a GPU takes the operation when its weights are in host memory. It may
    be computed over one of what it reads (`inplace`), or be `stored` in a cache. `device` counts GPUs from 0, the host is the last; None is
    left to the scheduler. An `output` is never freed. A view of some columns has their `extent`, from the first byte to the last, which is
    what a copy of it takes. It was `born` as the n-th of a layer, and is computed in a `segment`: a layer, or before them (-1).
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
    extent: int = 0
    stored: bool = False
    born: tuple[int, int] = (-1, 0)
    segment: int = -1
    children: int = 0
    views: int = 0
    slot: Key = (-1, 0, -1)
    own: bool = False


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
        for read in node.reads:
            if read.leaf == "empty":
                read.device = node.device


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
            steps.append((Node("kept", reads=(source,), view=source, segment=part[0][0].segment), True))
            copied[id(source), current].segment = part[0][0].segment
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
                copied[id(read), current] = Node(
                    f"{read.name} copied",
                    read.extent or read.nbytes,
                    device=current,
                    output=copies > 1,
                    born=read.born,
                    slot=(*read.born, current or 0),
                )
                taken.append(read)
        node.reads = tuple(copied.get((id(read), current), read) if read in moved else read for read in node.reads)
        part.append((node, False))
    close()
    if copies > 1:
        for leaf in inputs:
            leaf.output = leaf.leaf == "input"
            if not leaf.output:
                continue
            first += [leaf, *(Node(leaf.name, leaf.nbytes, device=leaf.device, output=True) for _ in range(copies - 1))]
        for made in copied.values():
            first += [made, *(Node(made.name, made.nbytes, device=made.device, output=True) for _ in range(copies - 1))]
    return [*first, *(leaf for leaf in inputs if leaf not in first)], steps
