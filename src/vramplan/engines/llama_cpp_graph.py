"""llama.cpp's graph of one pass, made of the tape's: the nodes that ggml computes, each in fp32, and what is written over what.

Knows what ggml makes of one op of the tape: a norm is a norm and a product, attention three nodes or six, gate and up a node each, a
mixture of experts the nodes of `build_moe_ffn`. Any other op is computed over its first operand where the sizes allow. Source: llama.cpp
0.5.0 `src/llama-graph.cpp` (`build_norm`, `build_ffn`, `build_moe_ffn`, `build_attn_mha`, `build_attn_inp_kv_impl`) and `src/models/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from ..tape import Op, Tape, Tensor, Weight, numel
from .llama_cpp_schedule import Node, root

Placed = Callable[[Weight, int | None], tuple[int, int]]
"""Bytes of a weight in one layer (None: outside the layers), and the device that holds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A layer's cache as the graph sees it: the cells of all streams, bytes of keys and values, its device, and whether it is of a window."""

    cells: int
    keys: int
    values: int
    device: int
    window: bool


@dataclass(slots=True, kw_only=True)
class Builder:
    """Collects the nodes of a pass of `tokens` tokens of `tape`; `rotated` are keys and values that go through a Hadamard matrix first."""

    tape: Tape
    tokens: int
    host: int
    placed: Placed
    stores: Mapping[int, Store]
    flash: bool
    rotated: tuple[bool, bool] = (False, False)
    value_width: int = 0
    nodes: list[Node] = field(default_factory=list)
    inputs: dict[str, Node] = field(default_factory=dict)
    made: dict[int, tuple[Node, ...]] = field(default_factory=dict)
    weights: dict[tuple[int, int | None, int], Node] = field(default_factory=dict)
    chosen: Node | None = None
    shares: Node | None = None
    last: bool = False
    window: bool = False

    # ---- nodes ---------------------------------------------------------------------------------------------------------
    def node(self, name: str, nbytes: int, *reads: Node, inplace: bool = False) -> Node:
        made = Node(name, nbytes, reads, inplace=inplace, rows=self.tokens)
        self.nodes.append(made)
        return made

    def over(self, name: str, x: Node, *reads: Node) -> Node:
        """An operation that may be computed over `x`."""
        return self.node(name, x.nbytes, x, *reads, inplace=True)

    def view(self, of: Node, nbytes: int) -> Node:
        made = Node(f"{of.name} view", nbytes, (of,), view=root(of))
        self.nodes.append(made)
        return made

    def input(self, name: str, nbytes: int) -> Node:
        """An input of the graph, in host memory."""
        if name not in self.inputs:
            self.inputs[name] = Node(name, nbytes, leaf="input", device=self.host)
        return self.inputs[name]

    def weight(self, weight: Weight, layer: int | None, share: int = 1, part: int = 0) -> Node:
        """A weight, or one of `share` equal parts that the file holds as tensors of their own."""
        key = id(weight), layer, part
        if key not in self.weights:
            nbytes, device = self.placed(weight, layer)
            self.weights[key] = Node(weight.name, nbytes // share, leaf="weight", device=device)
        return self.weights[key]

    def parts(self, x: Tensor) -> tuple[Node, ...]:
        """The nodes of a tensor of the tape: several where ggml does not join what the tape does."""
        found = self.made.get(id(x))
        if found is None:
            found = self.made[id(x.storage)]
            if len(found) == 1:
                found = (self.view(found[0], fp32(x)),)
        return found

    def of(self, x: Tensor) -> Node:
        return self.parts(x)[0]

    # ---- the pass ------------------------------------------------------------------------------------------------------
    def build(self) -> list[Node]:
        """The nodes of the whole pass, layers in their order."""
        ops = [op for op in self.tape.ops if op.tower is None]
        groups = [list(group) for group in regions(ops)]
        sections = [(layers_of(group), group) for group in groups]
        order = sorted((layer, n) for n, (layers, _) in enumerate(sections) for layer in layers or ())
        first = next((n for n, (layers, _) in enumerate(sections) if layers), len(sections))
        current: tuple[Node, ...] = ()
        for _, group in sections[:first]:
            current = self.section(group, None)
        for layer, n in order:
            group = sections[n][1]
            entry = next((r.storage for op in group for r in op.reads if r.storage.follows is not None), group[0].reads[0].storage)
            self.made[id(entry)] = current
            self.last = layer == order[-1][0]
            current = self.section(group, layer)
        for layers, group in sections[first:]:
            if layers is None:
                self.made[id(group[0].reads[0].storage)] = current
                current = self.section(group, None)
        if self.nodes:
            root(current[0]).output = True
        return self.nodes

    def section(self, group: Sequence[Op], layer: int | None) -> tuple[Node, ...]:
        """The ops of one layer, or of what stands before or after them: returns what the last one writes."""
        own = {id(t) for op in group for t in op.writes}
        for op in group:
            for read in op.reads:
                if read.base is not None and id(read.storage) in own:
                    self.made.pop(id(read), None)
        for op in group:
            self.made[id(op.writes[0])] = self.translate(op, layer)
        return self.made[id(group[-1].writes[0])]

    def translate(self, op: Op, layer: int | None) -> tuple[Node, ...]:
        """The nodes that one op of the tape becomes; returns those that later ops read."""
        name = op.name.rpartition(".")[2]
        matrices = [w for w in op.weights if len(w.shape) > 1 and w.kind not in ("norm", "conv")]
        if name == "attention":
            return (self.attention(op, layer),)
        if ".experts." in f".{op.name}" and (found := self.expert(op, name, layer, matrices)):
            return found
        if name == "probabilities":
            return (self.over("probabilities", self.of(op.reads[0])),)
        if any(w.kind == "embed" for w in op.weights) and not op.flops:
            return (self.lookup(op),)
        if matrices and op.flops:
            return self.products(op, layer, matrices)
        if len(op.writes) > 1 and op.writes[1].name.endswith((".rstd", ".stats")):
            return (self.norm(op, layer),)
        if name in ("act_and_mul", "gated") and (len(op.reads) > 1 or name == "act_and_mul"):
            return (self.node(name, fp32(op.writes[0]), *(n for r in op.reads for n in self.parts(r))),)
        if name == "residual":
            return (self.residual(op),)
        return (self.simple(op, layer),)

    # ---- what one op becomes ---------------------------------------------------------------------------------------------
    def lookup(self, op: Op) -> Node:
        """Rows of an embedding, which is on the host."""
        ids = self.input("positions" if "pos" in op.name or "wpe" in op.name else "tokens", 4 * self.tokens)
        return Node_append(self, Node("rows", fp32(op.writes[0]), (self.weight(op.weights[0], None), ids), rows=0))

    def products(self, op: Op, layer: int | None, matrices: Sequence[Weight]) -> tuple[Node, ...]:
        """One product for each matrix (gate and up), and what biases add to it."""
        x = self.of(op.reads[0])
        biases = [w for w in op.weights if len(w.shape) == 1]
        found = []
        for i, w in enumerate(matrices):
            nbytes = fp32(op.writes[0]) * int(w.shape[0]) // sum(int(m.shape[0]) for m in matrices)
            y = self.node(w.name, nbytes if len(matrices) > 1 else fp32(op.writes[0]), self.weight(w, layer), x)
            if i < len(biases):
                y = self.over("bias", y, self.weight(biases[i], layer))
            found.append(y)
        return tuple(found)

    def norm(self, op: Op, layer: int | None) -> Node:
        x = self.of(op.reads[0])
        y = self.node("norm", fp32(op.writes[0]), x, inplace=op.writes[1].name.endswith(".rstd"))
        for w in op.weights:
            y = self.over("norm weight", y, self.weight(w, layer))
        return y

    def residual(self, op: Op) -> Node:
        """A sum; in the last layer, of those rows only that give an output: all of them here."""
        a, b = (self.of(read) for read in op.reads)
        if self.last:
            ids = self.input("output rows", 4 * self.tokens)
            b, a = self.node("rows", b.nbytes, b, ids), self.node("rows", a.nbytes, a, ids)
            self.last = False
        return self.node("sum", fp32(op.writes[0]), b, a, inplace=True)

    def simple(self, op: Op, layer: int | None) -> Node:
        reads = [n for read in op.reads for n in self.parts(read)]
        y = self.node(op.name, fp32(op.writes[0]), *reads, inplace=True)
        for w in op.weights:
            y = self.over("weight", y, self.weight(w, layer))
        return y

    def attention(self, op: Op, layer: int | None) -> Node:
        """Keys and values into the cache, then flash attention, or scores, their softmax, the product with values and its copy."""
        q, k, v = (self.of(read) for read in op.reads[:3])
        store = self.stores.get(layer if layer is not None else -1)
        out = fp32(op.writes[0])
        if store is None:
            return self.node("attention", out, q, k, v)
        if self.rotated[0]:
            q, k = self.node("q rotated", q.nbytes, q), self.node("k rotated", k.nbytes, k)
        if self.rotated[1]:
            v = self.node("v rotated", v.nbytes, v)
        kind = " window" if store.window else ""
        for what, x, wide in (("keys", k, 8), ("values", v, 8 if self.flash else 8 * self.value_width)):
            ids = self.input(f"{what} ids{kind}", wide * self.tokens)
            stored = self.node(f"{what} stored", 0, x, ids)
            stored.device = store.device
        keys, values = (Node(what, n, leaf="cache", device=store.device) for what, n in (("keys", store.keys), ("values", store.values)))
        mask = self.input(f"mask{kind}", (2 if self.flash else 4) * store.cells * self.tokens)
        if self.flash:
            y = self.node("attention", out, q, keys, values, mask)
        else:
            heads = int(op.writes[1].shape[1])
            scores = self.node("scores", 4 * heads * store.cells * self.tokens, keys, q)
            y = self.node("product", out, values, self.over("softmax", scores, mask))
            y = self.node("copy", out, y)
        return self.node("rotated back", out, y) if self.rotated[1] else y

    def expert(self, op: Op, name: str, layer: int | None, matrices: Sequence[Weight]) -> tuple[Node, ...]:
        """The nodes of `build_moe_ffn`."""
        out = fp32(op.writes[0])
        if name == "permute":
            x, probabilities = (self.of(read) for read in op.reads)
            self.chosen = self.node("order of experts", probabilities.nbytes, probabilities)
            self.shares = self.node("weights", 4 * int(op.writes[0].shape[0]), probabilities, self.chosen)
            return (x,)
        if name in ("up", "down"):
            assert self.chosen
            x = self.parts(op.reads[0])[0]
            pieces = 2 if name == "up" and len(matrices) == 1 and int(op.writes[0].shape[-1]) % 2 == 0 and fused(op) else 1
            found = []
            biases = [w for w in op.weights if w not in matrices]
            for w in matrices:
                for part in range(pieces):
                    y = self.node(w.name, out // len(matrices) // pieces, self.weight(w, layer, pieces, part), x, self.chosen)
                    for bias in biases[:1]:
                        y = self.over("bias", y, self.weight(bias, layer, pieces, part), self.chosen)
                    found.append(y)
            if name == "down" and self.shares:
                found = [self.over("weighted", found[0], self.shares)]
            return tuple(found)
        if name == "act":
            up = self.parts(op.reads[0])
            return (self.node("act", out, *up) if len(up) > 1 else self.over("act", up[0]),)
        if name == "combine":
            return (self.node("combined", out, self.of(op.reads[0])),)
        return ()


def Node_append(builder: Builder, node: Node) -> Node:
    builder.nodes.append(node)
    return node


def fused(op: Op) -> bool:
    return numel(op.weights[0].shape[:1]) == int(op.writes[0].shape[-1])


def regions(ops: Sequence[Op]) -> Iterator[Iterator[Op]]:
    """Runs of ops that belong together: one walk of a kind of layer, or what stands between."""
    for _, group in groupby(ops, key=lambda op: (op.region, op.in_layers)):
        yield group


def layers_of(group: Sequence[Op]) -> tuple[int, ...] | None:
    """The layers that a run of ops stands for, None outside of them."""
    return next((w.layers for op in group for w in op.weights if w.layers), None) if group[0].in_layers else None


def fp32(x: Tensor) -> int:
    return 4 * numel(x.shape)
