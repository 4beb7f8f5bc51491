"""llama.cpp's graph of what mixes tokens: attention over the cache, latent attention, convolutions and scans over states.

Source: llama.cpp 0.5.0 `src/llama-graph.cpp` (`build_attn_mha`, `build_attn_inp_kv_impl`), `src/models/` (`build_mamba_layer`).
"""

from __future__ import annotations

from ..tensors import Op
from .llama_cpp_graph import Graph, Store
from .llama_cpp_schedule import Node


def attention(g: Graph, op: Op, layer: int | None) -> Node:
    """Keys and values into the cache, then flash attention, or scores, their softmax, the product with values and its copy."""
    q, k, v = (g.of(read) for read in op.reads[:3])
    own = g.stores.get(layer if layer is not None else -1)
    store = own or g.shared.get(id(op.reads[1].storage))
    out = g.bytes(op.writes[0])
    if store is None:
        return g.node("attention", out, q, k, v)
    g.shared[id(op.reads[1].storage)] = store
    kind = " window" if store.window else ""
    if g.rotated[0]:
        matrix = g.input(f"keys' rotation{kind}", 4 * g.rotated[0] ** 2)
        q, k = g.node("q rotated", q.nbytes, matrix, q), g.node("k rotated", k.nbytes, matrix, k)
    if g.rotated[1]:
        v = g.node("v rotated", v.nbytes, g.input(f"values' rotation{kind}", 4 * g.rotated[1] ** 2), v)
    for x in (q, k, v) if g.windowed and own else (q, v, k) if own else (q,):
        g.expand(x)
    for what, x, wide in (("keys", k, 8), ("values", v, 8 if g.flash else 8 * g.value_width)) if own else ():
        ids = g.input(f"{what} ids{kind}", wide * g.tokens)
        stored = g.node(f"{what} stored", 0, g.view(x, x.nbytes), ids)
        stored.device, stored.stored = store.device, True
        g.expand(stored)
    keys, values = (g.leaf("cache", what, n, store.device) for what, n in (("keys", store.keys), ("values", store.values)))
    mask = g.input(f"mask{kind}", (2 if g.flash else 4) * store.cells * g.tokens)
    if g.picked is not None:
        mask = picked_mask(g, mask, g.picked)
    if g.flash:
        y = g.node("attention", out, g.view(q, q.nbytes), keys, values, mask)
    else:
        heads = int(op.writes[1].shape[1])
        scores = g.node("scores", 4 * heads * store.cells * g.tokens, keys, g.view(q, q.nbytes))
        y = g.node("product", out, values, g.over("softmax", scores, mask))
        y = y if g.latent else g.node("copy", out, g.view(y, out))
    if not g.latent:
        g.expand(y)
    return g.node("rotated back", out, g.input(f"values' rotation{kind}", 4 * g.rotated[1] ** 2), y) if g.rotated[1] else y


def indexer(g: Graph, op: Op, store: Store) -> Node:
    """The cells with the highest scores: small heads' queries and keys, rotated, and one fused operation (`glm-dsa.cpp`, fused_lid)."""
    q, k, weights = (g.of(read) for read in op.reads)
    matrix = g.input("indexer's rotation", 4 * (k.nbytes // (4 * g.tokens)) ** 2)
    q, k = (g.node(f"indexer's {name} rotated", x.nbytes, matrix, x) for name, x in (("q", q), ("k", k)))
    g.stored(store.device, g.view(k, k.nbytes), g.input("indexer's ids", 8 * g.tokens))
    mask = g.input("indexer's mask", 2 * store.cells * g.tokens)
    scaled = g.over("scaled", g.view(weights, weights.nbytes))
    keys = g.leaf("cache", "indexer's keys", 0, store.device)
    scores = g.node("indexer's scores", 4 * store.cells * g.tokens, g.view(q, q.nbytes), keys, scaled, mask)
    top = g.node("top cells", 4 * min(g.topk, store.cells) * g.tokens, scores)
    g.picked = g.node("copy", top.nbytes, top)
    return g.picked


def picked_mask(g: Graph, mask: Node, picked: Node) -> Node:
    """A mask of all cells, of which those `picked` are set to zero, joined with the pass's (`build_attn`, llm_graph_input_attn_k_dsa).

    The zeros are a tensor that nothing computes: ggml makes room for it before the first layer.
    """
    filled = g.over("filled", mask)
    zeros = Node("zeros", picked.nbytes, leaf="empty", born=g.number())
    rows = Node("rows", mask.nbytes, (g.over("zeros", zeros), g.view(picked, picked.nbytes), filled), view=filled, born=g.number())
    return g.over("mask", g.view(rows, mask.nbytes), mask)


def absorbed(g: Graph, op: Op, name: str, layer: int | None) -> tuple[Node, ...]:
    """Latent attention: queries through the keys' expansion, joined with their rotated part; outputs through that of the values."""
    out = g.bytes(op.writes[0])
    if name == "q":
        return (g.of(op.reads[0]), g.of(op.reads[1]))
    if name == "absorb_q":
        q, *rotated = g.parts(op.reads[0])
        rest = sum(part.nbytes for part in rotated)
        y = g.node("product", out - rest, g.weight(op.weights[0], layer, 2), g.view(q, q.nbytes - rest))
        return (g.node("joined", out, g.view(y, y.nbytes), *rotated) if rotated else y,)
    y = g.node("product", out, g.weight(op.weights[0], layer, 2, 1), g.view(g.of(op.reads[0]), g.of(op.reads[0]).nbytes))
    y = g.expand(g.node("copy", out, g.view(y, out)))
    return (y,)


def convolution(g: Graph, op: Op, layer: int) -> Node:
    """The state's columns joined with the transposed input, and their convolution (`build_mamba_layer`)."""
    nbytes, device = g.states[layer, "conv state"]
    x = g.of(op.reads[0])
    both = g.node("joined", g.bytes(op.writes[0]) + nbytes, g.columns or g.leaf("cache", "none", 0, device), g.view(x, x.nbytes))
    g.stored(device, g.view(both, nbytes))
    y = g.node("convolution", g.bytes(op.writes[0]), both, g.weight(op.weights[0], layer))
    for w in op.weights[1:]:
        y = g.over("bias", y, g.weight(w, layer))
    return y


def scan(g: Graph, op: Op, layer: int) -> Node:
    """Mamba's scan writes its output and the new state in one tensor, adds x · D, and gates with what is left of its projection."""
    nbytes, device = g.states[layer, "ssm state"]
    out = g.bytes(op.writes[0])
    reads = [g.of(read) for read in op.reads]
    gate = reads.pop() if len(reads) > 2 and op.reads[-1].base is not None and op.reads[-1].name.endswith("in_proj") else None
    if len(reads) == 2:  # Mamba-2's steps are columns of its projection
        reads[1] = g.over("steps", g.node("copy", reads[1].nbytes, reads[1]), g.leaf("weight", "dt_bias", 0, g.home))
    cache = g.leaf("cache", "ssm state", nbytes, device)
    g.stored(device)
    mine, others = g.whose()
    both = g.node("scan", out + nbytes, cache, mine, *(g.view(read, read.nbytes) for read in reads), g.leaf("weight", "A", 0, g.home))
    both.rows = 1  # ggml_ssm_scan's output is one row, which no GPU takes of host weights
    g.expand(both)
    g.stored(device, g.node("states of others", 0, cache, others))
    g.stored(device, g.view(both, nbytes))
    skipped = g.node("x · D", out, reads[0], g.leaf("weight", "D", 0, g.home), inplace=True)
    y = g.node("sum", out, g.view(both, out), skipped, inplace=True)
    return g.node("gated", out, g.node("copy", out, gate), y) if gate else y


def delta_rule(g: Graph, op: Op, layer: int) -> Node:
    """A gated delta rule takes its state out of the cache first, and normed queries and keys (`delta-net-base.cpp`, `qwen3next.cpp`)."""
    nbytes, device = g.states[layer, "delta state"]
    out = g.bytes(op.writes[0])
    mixed, *rest = (g.of(read) for read in op.reads)
    cache = g.leaf("cache", "delta state", nbytes, device)
    mine, others = g.whose()
    g.stored(device)
    state = g.expand(g.node("delta state", nbytes, cache, mine))
    g.stored(device, g.node("states of others", 0, cache, others))
    width = (mixed.nbytes - out) // 2
    q, k = (g.over("scaled", g.node("norm", width, g.view(mixed, width))) for _ in "qk")
    both = g.expand(g.node("delta rule", out + nbytes, q, k, g.view(mixed, out), *rest, state))
    g.stored(device, g.view(both, nbytes))
    return g.view(both, out)
