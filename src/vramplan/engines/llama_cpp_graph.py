"""llama.cpp's graph of one pass, made of the tape's: the nodes that ggml computes, each in fp32, and what is written over what.

Knows what ggml makes of one op of the tape: a norm is a norm and a product, attention three nodes or six, gate and up a node each, a
mixture of experts the nodes of `build_moe_ffn`. Any other op is computed over its first operand where the sizes allow. Source: llama.cpp
0.5.0 `src/llama-graph.cpp` (`build_norm`, `build_ffn`, `build_moe_ffn`, `build_attn_mha`, `build_attn_inp_kv_impl`) and `src/models/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from ..dim import numel
from ..errors import Unknown
from ..tape import Op, Tape, Tensor, Weight
from .llama_cpp_periods import representatives
from .llama_cpp_placement import is_merged
from .llama_cpp_schedule import Node, root

Placed = Callable[[Weight, int | None], tuple[int, int]]
"""Bytes of a weight in one layer (None: outside the layers), and the device that holds them."""


MIXERS = ("attention", "scan", "delta_rule", "conv")
"""Ops after whose projection the last layer goes on with those rows only that give an output: all rows here, but copied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A layer's cache as the graph sees it: cells of one stream, bytes of keys and values, its device, and whether it is of a window."""

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
    states: Mapping[tuple[int, str], tuple[int, int]]
    flash: bool
    rotated: tuple[bool, bool] = (False, False)
    value_width: int = 0
    windowed: bool = False
    offload: bool = True
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
    columns: Node | None = None
    rows: dict[int, Node] | None = None
    before: set[int] = field(default_factory=set)

    # ---- nodes ---------------------------------------------------------------------------------------------------------
    def node(self, name: str, nbytes: int, *reads: Node, inplace: bool = False) -> Node:
        return Node(name, nbytes, reads, inplace=inplace, rows=self.tokens if self.offload else 0)

    def over(self, name: str, x: Node, *reads: Node) -> Node:
        """An operation that may be computed over `x`."""
        return self.node(name, x.nbytes, x, *reads, inplace=True)

    def view(self, of: Node, nbytes: int) -> Node:
        return Node(f"{of.name} view", nbytes, (of,), view=root(of))

    def input(self, name: str, nbytes: int) -> Node:
        """An input of the graph, in host memory."""
        if name not in self.known:
            self.known[name] = Node(name, nbytes, leaf="input", device=self.host)
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
                self.nodes.append(top)
            elif top.leaf == "input":
                self.inputs.append(top)
        return node

    def weight(self, weight: Weight, layer: int | None, share: int = 1, part: int = 0) -> Node:
        """A weight, or one of `share` equal parts that the file holds as tensors of their own."""
        key = id(weight), layer, part
        if key not in self.weights:
            nbytes, device = self.placed(weight, layer)
            self.weights[key] = Node(weight.name, nbytes // share, leaf="weight", device=device)
        return self.weights[key]

    def parts(self, x: Tensor) -> tuple[Node, ...]:
        """The nodes of a tensor of the tape: several where ggml does not join what the tape does."""
        found = self._parts(x)
        if self.rows is None or len(found) > 1 or found[0].name == "output rows" or id(found[0]) not in self.before:
            return found
        if id(found[0]) not in self.rows:
            self.rows[id(found[0])] = self.node("output rows", found[0].nbytes, found[0], self.input("outputs", 4 * self.tokens))
        return (self.rows[id(found[0])],)

    def _parts(self, x: Tensor) -> tuple[Node, ...]:
        found = self.made.get(id(x))
        if found is None and id(x.storage) not in self.made:
            raise Unknown("llama.cpp's graph of models that attend to a second encoder's output is not described by this version")
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
        ops = self.tape.ops
        groups = [list(group) for group in regions(ops)]
        sections = [(layers_of(group), group) for group in groups]
        order = sorted((layer, n) for n, (layers, _) in enumerate(sections) for layer in layers or ())
        first = next((n for n, (layers, _) in enumerate(sections) if layers), len(sections))
        current: tuple[Node, ...] = ()
        for _, group in sections[:first]:
            current = self.section(group, None)
        for layer, n in self.standing(order, sections):
            group = sections[n][1]
            entry = next((r.storage for op in group for r in op.reads if r.storage.follows is not None), group[0].reads[0].storage)
            self.made[id(entry)] = current
            self.last = layer == order[-1][0]
            current = self.section(group, layer)
        self.rows = None
        for layers, group in sections[first:]:
            if layers is None:
                self.made[id(group[0].reads[0].storage)] = current
                current = self.section(group, None)
        self.expand(current[0])
        root(current[0]).output = True
        return self.nodes

    def standing(self, order: Sequence[tuple[int, int]], sections: Sequence[tuple[tuple[int, ...] | None, list[Op]]]) -> list[tuple[int, int]]:
        """Of layers in their `order`, those that stand for all."""
        weights = [list(dict.fromkeys(w for op in group for w in op.weights)) for _, group in sections]
        kinds = []
        for layer, n in order:
            found = (self.placed(w, layer) for w in weights[n])
            kinds.append((n, self.stores.get(layer), tuple((device, nbytes * (device == self.host)) for nbytes, device in found)))
        return [order[i] for i in representatives(kinds)]

    def section(self, group: Sequence[Op], layer: int | None) -> tuple[Node, ...]:
        """The ops of one layer, or of what stands before or after them: returns what the last one writes."""
        own = {id(t) for op in group for t in op.writes}
        for op in group:
            for read in op.reads:
                if read.base is not None and id(read.storage) in own:
                    self.made.pop(id(read), None)
        widths = {op.name.rpartition(".")[2]: int(op.writes[0].shape[-1]) for op in group if ".experts." in op.name}
        self.gated = widths.get("up", 0) > widths.get("act", 0)
        if layer is not None and (layer, "conv state") in self.states:
            nbytes, device = self.states[layer, "conv state"]
            self.stored(device)
            self.columns = self.expand(self.node("conv state", nbytes, Node("conv cache", nbytes, leaf="cache", device=device)))
            self.stored(device)
        mixers = [i for i, op in enumerate(group) if op.name.rpartition(".")[2] in MIXERS]
        outputs = next((i for i in range(mixers[-1] + 1, len(group)) if group[i].weights), -1) if mixers and self.last else -1
        self.latent = any(op.name.endswith("absorb_v") for op in group)
        for i, op in enumerate(group):
            self.made[id(op.writes[0])] = self.translate(op, layer)
            if i == outputs and not op.name.endswith("absorb_v"):
                self.rows, self.before = {}, {id(node) for made in self.made.values() for node in made}
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
        if matrices and op.flops and not name.startswith("absorb_"):
            return self.products(op, layer, matrices)
        if len(op.writes) > 1 and op.writes[1].name.endswith((".rstd", ".stats")):
            return (self.norm(op, layer),)
        if name in ("act_and_mul", "gated") and (len(op.reads) > 1 or name == "act_and_mul"):
            return (self.node(name, fp32(op.writes[0]), *(n for r in op.reads for n in self.parts(r))),)
        if any(w.kind == "conv" for w in op.weights) and layer is not None and (layer, "conv state") in self.states:
            return (self.convolution(op, layer),)
        if name in ("scan", "delta_rule") and layer is not None:
            return (self.scan(op, layer, "ssm state" if name == "scan" else "delta state"),)
        if name == "residual":
            return (self.residual(op),)
        if name in ("q", "absorb_q", "absorb_v") and (len(op.reads) > 1 or name != "q"):
            return self.absorbed(op, name, layer)
        if name == "rope":
            return (self.over("rope", self.by_head(self.of(op.reads[0])), self.input("positions", 4 * self.tokens)),)
        return (self.simple(op, layer),)

    # ---- what one op becomes ---------------------------------------------------------------------------------------------
    def lookup(self, op: Op) -> Node:
        """Rows of an embedding, which is on the host."""
        ids = self.input("positions" if op.reads and "pos" in op.reads[0].name else "tokens", 4 * self.tokens)
        table = Node(op.weights[0].name, leaf="weight", device=self.host)
        rows = Node("rows", fp32(op.writes[0]), (table, ids), device=self.host)
        if "embeddings" not in self.known:
            self.expand(ids)
            self.expand(self.input("embeddings", rows.nbytes))
        return self.expand(rows)

    def products(self, op: Op, layer: int | None, matrices: Sequence[Weight]) -> tuple[Node, ...]:
        """One product for each matrix (gate and up), and what biases add to it."""
        x = self.of(op.reads[0])
        biases = [w for w in op.weights if len(w.shape) == 1]
        found = []
        for i, w in enumerate(matrices):
            nbytes = fp32(op.writes[0]) * int(w.shape[0]) // sum(int(m.shape[0]) for m in matrices)
            y = self.node("product", nbytes if len(matrices) > 1 else fp32(op.writes[0]), self.weight(w, layer), x)
            if i < len(biases):
                y = self.over("product and bias", y, self.weight(biases[i], layer))
            found.append(y)
        return tuple(found)

    def norm(self, op: Op, layer: int | None) -> Node:
        x = self.of(op.reads[0])
        heads = numel(op.writes[1].shape) > self.tokens * (1 + op.writes[1].name.endswith(".stats"))
        name = "norm of heads" if heads else "norm"
        if len(op.reads) > 1:
            gate = self.node("copy", x.nbytes, self.of(op.reads[1]))
            x = self.view(self.node("gated", x.nbytes, gate, x), x.nbytes)
        y = self.node(name, fp32(op.writes[0]), self.by_head(x) if heads else x, inplace=op.writes[1].name.endswith(".rstd"))
        for w in op.weights:
            y = self.over(name, y, self.weight(w, layer))
        return y

    def by_head(self, x: Node) -> Node:
        """A projection as [heads, head_dim]: a view, over which nothing is written; what is so already stays."""
        return x if x.name == "norm of heads" or x.view is not None else self.view(x, x.nbytes)

    def residual(self, op: Op) -> Node:
        """A sum, over what is newer: the other one is the stream that the layer got."""
        a, b = (self.of(read) for read in op.reads)
        older = a.reads[0] if a.name == "output rows" else a
        first, second = (b, a) if id(older) in self.seen or self.follows(b, a) else (a, b)
        return self.node("sum", fp32(op.writes[0]), first, second, inplace=True)

    def follows(self, node: Node, earlier: Node) -> bool:
        """Whether `node` is made of `earlier`, through nodes that are not in the graph yet."""
        stack, met = [node], set(self.seen)
        while stack:
            top = stack.pop()
            if top is earlier:
                return True
            fresh = [read for read in top.reads if id(read) not in met and not read.leaf]
            met.update(id(read) for read in fresh)
            stack += fresh
        return False

    def simple(self, op: Op, layer: int | None) -> Node:
        reads = [n for read in op.reads for n in self.parts(read)]
        y = self.node(op.name, fp32(op.writes[0]), *reads, inplace=True)
        for w in op.weights:
            y = self.over("weight", y, self.weight(w, layer))
        return y

    def stored(self, device: int, *reads: Node) -> None:
        """A write into a cache on `device`, which takes no memory of its own."""
        made = self.node("stored", 0, *reads)
        made.device = device
        self.expand(made)

    def convolution(self, op: Op, layer: int) -> Node:
        """The state's columns joined with the transposed input, and their convolution (`build_mamba_layer`)."""
        nbytes, device = self.states[layer, "conv state"]
        x = self.of(op.reads[0])
        both = self.node("joined", fp32(op.writes[0]) + nbytes, self.columns or Node("none", 0, device=device), self.view(x, x.nbytes))
        self.stored(device, self.view(both, nbytes))
        y = self.node("convolution", fp32(op.writes[0]), both, self.weight(op.weights[0], layer))
        for w in op.weights[1:]:
            y = self.over("bias", y, self.weight(w, layer))
        return y

    def scan(self, op: Op, layer: int, state: str) -> Node:
        """A scan writes its output and the new state in one tensor; Mamba adds x · D, and gates with what is left of its projection."""
        nbytes, device = self.states[layer, state]
        out = fp32(op.writes[0])
        reads = [self.of(read) for read in op.reads]
        gate = reads.pop() if len(reads) > 2 and op.reads[-1].base is not None and op.reads[-1].name.endswith("in_proj") else None
        cache = Node(state, nbytes, leaf="cache", device=device)
        self.stored(device)
        both = self.expand(self.node("scan", out + nbytes, cache, *(self.view(read, read.nbytes) for read in reads)))
        self.stored(device)
        self.stored(device, self.view(both, nbytes))
        y = self.view(both, out)
        if state == "ssm state":
            y = self.node("sum", out, y, self.node("x · D", out, reads[0], inplace=True), inplace=True)
        return self.node("gated", out, self.node("copy", out, gate), y) if gate else y

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
        for x in (q, k, v) if self.windowed else (q, v, k):
            self.expand(x)
        for what, x, wide in (("keys", k, 8), ("values", v, 8 if self.flash else 8 * self.value_width)):
            ids = self.input(f"{what} ids{kind}", wide * self.tokens)
            stored = self.node(f"{what} stored", 0, self.view(x, x.nbytes), ids)
            stored.device = store.device
            self.expand(stored)
        keys, values = (Node(what, n, leaf="cache", device=store.device) for what, n in (("keys", store.keys), ("values", store.values)))
        mask = self.input(f"mask{kind}", (2 if self.flash else 4) * store.cells * self.tokens)
        if self.flash:
            y = self.node("attention", out, self.view(q, q.nbytes), keys, values, mask)
        else:
            heads = int(op.writes[1].shape[1])
            scores = self.node("scores", 4 * heads * store.cells * self.tokens, keys, self.view(q, q.nbytes))
            y = self.node("product", out, values, self.over("softmax", scores, mask))
            y = y if self.latent else self.node("copy", out, self.view(y, out))
        if not self.latent:
            self.expand(y)
        return self.node("rotated back", out, y) if self.rotated[1] else y

    def absorbed(self, op: Op, name: str, layer: int | None) -> tuple[Node, ...]:
        """Latent attention: queries through the keys' expansion, joined with their rotated part; outputs through that of the values."""
        out = fp32(op.writes[0])
        if name == "q":
            return (self.of(op.reads[0]), self.of(op.reads[1]))
        if name == "absorb_q":
            q, *rotated = self.parts(op.reads[0])
            rest = sum(part.nbytes for part in rotated)
            y = self.node("product", out - rest, self.weight(op.weights[0], layer, 2), self.view(q, q.nbytes - rest))
            return (self.node("joined", out, self.view(y, y.nbytes), *rotated) if rotated else y,)
        y = self.node("product", out, self.weight(op.weights[0], layer, 2, 1), self.view(self.of(op.reads[0]), self.of(op.reads[0]).nbytes))
        y = self.expand(self.node("copy", out, self.view(y, out)))
        return (y,)

    def expert(self, op: Op, name: str, layer: int | None, matrices: Sequence[Weight]) -> tuple[Node, ...]:
        """The nodes of `build_moe_ffn`."""
        out = fp32(op.writes[0])
        if name == "permute":
            x, probabilities = (self.of(read) for read in op.reads)
            self.chosen = self.node("order of experts", probabilities.nbytes, probabilities)
            self.shares = self.expand(self.node("weights", 4 * int(op.writes[0].shape[0]), probabilities, self.view(self.chosen, 0)))
            return (x,)
        if name in ("up", "down"):
            assert self.chosen
            x = self.parts(op.reads[0])[0]
            pieces = 2 if name == "up" and len(matrices) == 1 and self.gated and not is_merged(matrices[0].name) else 1
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
            experts = self.expand(self.of(op.reads[0]))
            count = max(experts.nbytes // out, 1)
            some = [self.expand(self.view(experts, out)) for _ in range(count)]
            y = self.node("sum", out, *some[:2])
            for view in some[2:]:
                y = self.over("sum", self.expand(y), view)
            return (self.expand(y),)
        return ()


def regions(ops: Sequence[Op]) -> Iterator[Iterator[Op]]:
    """Runs of ops that belong together: one walk of a kind of layer, or what stands between."""
    for _, group in groupby(ops, key=lambda op: (op.region, op.in_layers)):
        yield group


def layers_of(group: Sequence[Op]) -> tuple[int, ...] | None:
    """The layers that a run of ops stands for, None outside of them."""
    return next((w.layers for op in group for w in op.weights if w.layers), None) if group[0].in_layers else None


def fp32(x: Tensor) -> int:
    return 4 * numel(x.shape)
