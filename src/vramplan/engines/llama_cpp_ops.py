"""What llama.cpp's graph makes of one op of the tape: a norm is a norm and a product, gate and up a product each, a sum is over the newer.

Any op without a rule here is computed over its first operand where the sizes allow. Source: llama.cpp 0.5.0 `src/llama-graph.cpp`
(`build_norm`, `build_ffn`) and `src/models/`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..dim import numel
from ..tensors import Op, Weight
from .llama_cpp_experts import expert
from .llama_cpp_graph import Graph
from .llama_cpp_habits import FOLDED, ROWS_LAST, SECOND_FIRST, SLICES, STREAM_FIRST
from .llama_cpp_mixers import absorbed, attention, convolution, delta_rule, indexer, scan
from .llama_cpp_placement import is_split
from .llama_cpp_schedule import Node


def translate(g: Graph, op: Op, layer: int | None) -> tuple[Node, ...]:
    """The nodes that one op of the tape becomes; returns those that later ops read."""
    name = op.name.rpartition(".")[2]
    matrices = [w for w in op.weights if len(w.shape) > 1 and w.kind not in ("norm", "conv")]
    if name == "attention":
        return (attention(g, op, layer),)
    if FOLDED in g.habits and name.endswith("_multiplier"):
        return g.parts(op.reads[0])
    if ".experts." in f".{op.name}" and (found := expert(g, op, name, layer, matrices)):
        return found
    if name == "scores" and op.name.endswith("indexer.scores") and len(op.reads) > 2 and layer in g.stores:
        return (indexer(g, op, g.stores[layer or 0]),)
    if name == "probabilities":
        return (g.over("probabilities", g.of(op.reads[0])),)
    if any(w.kind == "embed" for w in op.weights) and not op.flops:
        return (lookup(g, op),)
    if matrices and op.flops and not name.startswith("absorb_"):
        return products(g, op, layer, matrices)
    if len(op.writes) > 1 and op.writes[1].name.endswith((".rstd", ".stats")):
        return (norm(g, op, layer),)
    if name == "act_fn" and op.reads[0].base is not None and layer is not None and (layer, "ssm state") in g.states:
        return (g.node("copy", g.bytes(op.writes[0]), g.of(op.reads[0])),)
    if name == "gated" and layer is not None and (layer, "ssm state") in g.states:
        return (g.node(name, g.bytes(op.writes[0]), *(g.of(read) for read in reversed(op.reads))),)
    if name in ("act_and_mul", "gated") and (len(op.reads) > 1 or name == "act_and_mul"):
        return (g.node(name, g.bytes(op.writes[0]), *(n for r in op.reads for n in g.parts(r))),)
    if any(w.kind == "conv" for w in op.weights) and layer is not None and (layer, "conv state") in g.states:
        return (convolution(g, op, layer),)
    if name in ("scan", "delta_rule") and layer is not None:
        return (scan(g, op, layer) if name == "scan" else delta_rule(g, op, layer),)
    if SLICES in g.habits and name in ("scaled", "per_layer_inputs") and "per_layer" in op.name:
        y = simple(g, op, layer)
        return (g.expand(y) if name == "scaled" else g.node("slices", y.nbytes, g.view(y, y.nbytes)),)
    if name == "residual":
        return (residual(g, op),)
    if name in ("q", "absorb_q", "absorb_v") and (len(op.reads) > 1 or name != "q"):
        return absorbed(g, op, name, layer)
    if name == "rope":
        return (g.over("rope", g.by_head(g.of(op.reads[0])), g.input("positions", 4 * g.tokens)),)
    return (simple(g, op, layer),)


def lookup(g: Graph, op: Op) -> Node:
    """Rows of an embedding, which is on the host."""
    ids = g.input("positions" if op.reads and "pos" in op.reads[0].name else "tokens", 4 * g.tokens)
    rows = g.node("rows", g.bytes(op.writes[0]), g.leaf("weight", op.weights[0].name, 0, g.host), ids)
    rows.device = g.host
    if "embeddings" not in g.known:
        g.expand(ids)
        g.expand(g.input("embeddings", rows.nbytes))
    return g.expand(rows)


def products(g: Graph, op: Op, layer: int | None, matrices: Sequence[Weight]) -> tuple[Node, ...]:
    """One product for each matrix (gate and up), and what biases add to it."""
    x = g.of(op.reads[0])
    biases = [w for w in op.weights if len(w.shape) == 1]
    if op.name.endswith(".dt_proj") and op.reads[0].base is not None:
        x = g.node("copy", x.nbytes, x)
    if len(matrices) == 1 and is_split(matrices[0].name):
        halves = (g.weight(matrices[0], layer, 2, part) for part in (0, 1))
        return tuple(g.node("product", g.bytes(op.writes[0]) // 2, half, x) for half in halves)
    found = []
    for i, w in enumerate(matrices):
        nbytes = g.bytes(op.writes[0]) * int(w.shape[0]) // sum(int(m.shape[0]) for m in matrices)
        y = g.node("product", nbytes if len(matrices) > 1 else g.bytes(op.writes[0]), g.weight(w, layer), x)
        if i < len(biases):
            y = g.over("product and bias", y, g.weight(biases[i], layer))
        found.append(g.view(y, y.nbytes) if g.by_sequence and op.name.endswith("out_proj") else y)
    return tuple(found)


def norm(g: Graph, op: Op, layer: int | None) -> Node:
    x = g.of(op.reads[0])
    heads = numel(op.writes[1].shape) > g.tokens * (1 + op.writes[1].name.endswith(".stats"))
    if op.name.endswith("q_norm"):
        g.by_heads = heads
    heads = heads or (g.by_heads and op.name.endswith(("k_norm", "v_norm")))
    name = "norm of heads" if heads else "norm"
    if len(op.reads) > 1 and not g.delta:
        gate = g.node("copy", x.nbytes, g.of(op.reads[1]))
        x = g.view(g.node("gated", x.nbytes, gate, x), x.nbytes)
    y = g.node(name, g.bytes(op.writes[0]), g.by_head(x) if heads else x, inplace=op.writes[1].name.endswith(".rstd"))
    for w in op.weights:
        y = g.over(name, y, g.weight(w, layer))
    if len(op.reads) > 1 and g.delta:
        gate = g.of(op.reads[1])
        y = g.over("gated", y, g.node("gate", gate.nbytes, g.view(gate, gate.nbytes)))
    if layer is None and g.segment >= 0 and ROWS_LAST in g.habits:
        y.output = True
        g.fewer = True
        return g.output_rows(y)
    return y


def residual(g: Graph, op: Op) -> Node:
    """A sum, over what is newer: the other one is the stream that the layer got."""
    a, b = (g.of(read) for read in op.reads)
    older = a.reads[0] if a.name == "output rows" else a
    first, second = (b, a) if id(older) in g.seen or follows(g, b, a) else (a, b)
    g.sums += 1
    second_of_two = SECOND_FIRST in g.habits and g.sums == 2
    if STREAM_FIRST in g.habits or second_of_two or (SLICES in g.habits and any("per_layer" in read.name for read in op.reads)):
        first, second = second, first
    return g.node("sum", g.bytes(op.writes[0]), first, second, inplace=True)


def follows(g: Graph, node: Node, earlier: Node) -> bool:
    """Whether `node` is made of `earlier`, through nodes that are not in the graph yet."""
    stack, met = [node], set(g.seen)
    while stack:
        top = stack.pop()
        if top is earlier:
            return True
        fresh = [read for read in top.reads if id(read) not in met and not read.leaf]
        met.update(id(read) for read in fresh)
        stack += fresh
    return False


def simple(g: Graph, op: Op, layer: int | None) -> Node:
    reads = [n for read in op.reads for n in g.parts(read)]
    if op.name.endswith(".mixed"):  # attention's before the scan's
        reads.reverse()
    y = g.node(op.name, g.bytes(op.writes[0]), *reads, inplace=True)
    for w in op.weights:
        y = g.over("weight", y, g.weight(w, layer))
    return y
