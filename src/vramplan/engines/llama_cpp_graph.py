"""llama.cpp's graph of one pass as it grows: the nodes that ggml computes, each in fp32, in the order in which they are asked for.

Knows weights, caches and inputs by their place, and which nodes a tensor of the tape has become. Source: llama.cpp 0.5.0
`src/llama-graph.cpp`, `ggml/src/ggml.c` (ggml_build_forward_expand).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..dim import numel
from ..errors import Unknown
from ..tensors import Tensor, Weight
from .llama_cpp_schedule import Node, root

Placed = Callable[[Weight, int | None], tuple[int, int]]
"""Bytes of a weight in one layer (None: outside the layers), and the device that holds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A layer's cache as the graph sees it: cells of one stream, bytes of keys and values, its device, and whether it is of a window."""

    cells: int
    keys: int
    values: int
    device: int
    window: bool


@dataclass(slots=True, kw_only=True)
class Graph:
    """The nodes of a pass of `tokens` tokens as they are put in; `rotated` are the rows of the matrices that keys and values go through,
    `picked` the `topk` cells that an indexer picks for each token.
    """

    tokens: int
    host: int
    placed: Placed
    stores: Mapping[int, Store]
    states: Mapping[tuple[int, str], tuple[int, int]]
    flash: bool
    rotated: tuple[int, int] = (0, 0)
    value_width: int = 0
    windowed: bool = False
    offload: bool = True
    together: bool = False
    habits: frozenset[str] = frozenset()
    nodes: list[Node] = field(default_factory=list)
    inputs: list[Node] = field(default_factory=list)
    known: dict[str, Node] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    made: dict[int, tuple[Node, ...]] = field(default_factory=dict)
    weights: dict[tuple[int, int | None, int], Node] = field(default_factory=dict)
    chosen: Node | None = None
    shares: Node | None = None
    last: bool = False
    gated: bool = False
    latent: bool = False
    sequences: int = 1
    outputs: int = 0
    fewer: bool = False
    by_sequence: bool = False
    by_heads: bool = False
    delta: bool = False
    sums: int = 0
    home: int = 0
    columns: Node | None = None
    topk: int = 0
    picked: Node | None = None
    rows: dict[int, Node] | None = None
    before: set[int] = field(default_factory=set)
    shared: dict[int, Store] = field(default_factory=dict)
    segment: int = -1
    reached: int = -1
    born: int = 0

    def node(self, name: str, nbytes: int, *reads: Node, inplace: bool = False) -> Node:
        return Node(name, nbytes, reads, inplace=inplace, rows=self.computed() if self.offload else 0, born=self.number())

    def computed(self) -> int:
        """Rows that are computed here: of all tokens, or of those that give an output."""
        return self.outputs if self.fewer and self.outputs else self.tokens

    def bytes(self, x: Tensor) -> int:
        """Bytes in fp32 of the rows of a tensor that are computed here."""
        return 4 * numel(x.shape) * self.computed() // self.tokens

    def output_rows(self, x: Node) -> Node:
        """Those rows of `x` that give an output."""
        return self.node("output rows", x.nbytes * self.computed() // self.tokens, x, self.input("outputs", 4 * self.computed()))

    def begin(self, segment: int) -> None:
        """From here on new nodes are those of a layer, the `segment`-th."""
        self.segment, self.born, self.sums = segment, 0, 0

    def number(self) -> tuple[int, int]:
        """What a new node is called in its layer."""
        self.born += 1
        return self.segment, self.born

    def leaf(self, kind: str, name: str, nbytes: int, device: int) -> Node:
        """A weight or a cache: no memory of the graph's."""
        return Node(name, nbytes, leaf=kind, device=device, born=self.number())

    def over(self, name: str, x: Node, *reads: Node) -> Node:
        """An operation that may be computed over `x`."""
        return self.node(name, x.nbytes, x, *reads, inplace=True)

    def view(self, of: Node, nbytes: int) -> Node:
        return Node(f"{of.name} view", nbytes, (of,), view=root(of), born=self.number())

    def columns_of(self, of: Node, nbytes: int) -> Node:
        """A view of some columns of each row."""
        view = self.view(of, nbytes)
        view.extent = nbytes if of.name == "slices" else of.nbytes - (of.nbytes - nbytes) // self.tokens
        return view

    def input(self, name: str, nbytes: int) -> Node:
        """An input of the graph, in host memory."""
        if name not in self.known:
            self.known[name] = Node(name, nbytes, leaf="input", device=self.host, born=(-1, -len(self.known) - 1))
        return self.known[name]

    def expand(self, node: Node) -> Node:
        """Put `node` into the graph, after what it reads that is not there yet: `ggml_build_forward_expand`."""
        stack = [(node, 0)]
        while stack:
            top, i = stack.pop()
            if i == 0:
                if id(top) in self.seen:
                    continue
                self.seen.add(id(top))
            if i < len(top.reads):
                stack += [(top, i + 1), (top.reads[i], 0)]
            elif not top.leaf:
                self.reached = top.segment = max(self.reached, top.born[0])
                self.nodes.append(top)
            elif top.leaf in ("input", "empty"):
                self.inputs.append(top)
        return node

    def weight(self, weight: Weight, layer: int | None, share: int = 1, part: int = 0) -> Node:
        """A weight, or one of `share` equal parts that the file holds as tensors of their own."""
        key = id(weight), layer, part
        if key not in self.weights:
            nbytes, device = self.placed(weight, layer)
            self.weights[key] = self.leaf("weight", weight.name, nbytes // share, device)
        return self.weights[key]

    def parts(self, x: Tensor) -> tuple[Node, ...]:
        """The nodes of a tensor of the tape: several where ggml does not join what the tape does."""
        found = self._parts(x)
        if self.rows is None or len(found) > 1 or found[0].name == "output rows" or id(found[0]) not in self.before:
            return found
        if id(found[0]) not in self.rows:
            self.rows[id(found[0])] = self.output_rows(found[0])
        return (self.rows[id(found[0])],)

    def _parts(self, x: Tensor) -> tuple[Node, ...]:
        found = self.made.get(id(x))
        if found is None and id(x.storage) not in self.made:
            raise Unknown("llama.cpp's graph of models that attend to a second encoder's output is not described by this version")
        if found is None:
            found = self.made[id(x.storage)]
            if len(found) == 1:
                found = (self.columns_of(found[0], self.bytes(x)),)
        return found

    def of(self, x: Tensor) -> Node:
        return self.parts(x)[0]

    def by_head(self, x: Node) -> Node:
        """A projection as [heads, head_dim]: a view, over which nothing is written; what is so already stays."""
        return x if x.name in ("norm of heads", "rope") or x.view is not None else self.view(x, x.nbytes)

    def whose(self) -> tuple[Node, Node]:
        """Which states are this pass's, and which are other sequences': none, in a tensor without bytes."""
        ids = self.input("states", 4 * self.sequences)
        if "whose" not in self.known:
            for name, nbytes in (("whose", ids.nbytes), ("others", 0)):
                self.known[name] = self.view(ids, nbytes)
                self.known[name].born = (-1, -len(self.known))  # no layer's own
        return self.known["whose"], self.known["others"]

    def stored(self, device: int, *reads: Node) -> None:
        """A write into a cache on `device`, which takes no memory of its own."""
        made = self.node("stored", 0, *reads)
        made.device, made.stored = device, True
        self.expand(made)
