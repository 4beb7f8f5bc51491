"""llama.cpp's graph of a mixture of experts: `build_moe_ffn` of `src/llama-graph.cpp` (llama.cpp 0.5.0)."""

from __future__ import annotations

from collections.abc import Sequence

from ..tensors import Op, Weight
from .llama_cpp_graph import Graph
from .llama_cpp_placement import is_merged
from .llama_cpp_schedule import Node


def expert(g: Graph, op: Op, name: str, layer: int | None, matrices: Sequence[Weight]) -> tuple[Node, ...]:
    """The nodes of `build_moe_ffn`."""
    out = g.bytes(op.writes[0])
    if name == "permute":
        x, probabilities = (g.of(read) for read in op.reads)
        g.chosen = g.node("order of experts", probabilities.nbytes, probabilities)
        width = 4 * int(op.writes[0].shape[0]) * g.computed() // g.tokens
        g.shares = g.expand(g.node("weights", width, probabilities, g.view(g.chosen, 0)))
        return (x,)
    if name in ("up", "down"):
        assert g.chosen
        x = g.parts(op.reads[0])[0]
        pieces = 2 if name == "up" and len(matrices) == 1 and g.gated and not is_merged(matrices[0].name) else 1
        found = []
        biases = [w for w in op.weights if w not in matrices]
        for w in matrices:
            for part in range(pieces):
                y = g.node(w.name, out // len(matrices) // pieces, g.weight(w, layer, pieces, part), x, g.chosen)
                for bias in biases[:1]:
                    y = g.over("bias", y, g.weight(bias, layer, pieces, part), g.chosen)
                found.append(y)
        if name == "down" and g.shares:
            found = [g.over("weighted", found[0], g.shares)]
        return tuple(found)
    if name == "act":
        up = g.parts(op.reads[0])
        return (g.over("act", up[0]) if len(up) == 1 and up[0].nbytes == out else g.node("act", out, *(g.view(y, y.nbytes) for y in up)),)
    if name == "combine":
        experts = g.expand(g.of(op.reads[0]))
        count = max(experts.nbytes // out, 1)
        some = [g.expand(g.view(experts, out)) for _ in range(count)]
        y = g.node("sum", out, *some[:2])
        for view in some[2:]:
            y = g.over("sum", g.expand(y), view)
        return (g.expand(y),)
    return ()
