"""llama.cpp's graph of one pass, made of the tape's: layers in their order, of those that are alike only a few.

Ops of the tape that belong together make a section: one walk of a kind of layer, or what stands between. What an op becomes is told by
llama_cpp_ops.py.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import groupby

from ..tape import Tape
from ..tensors import Op
from .llama_cpp_graph import Graph
from .llama_cpp_habits import ROWS_LAST
from .llama_cpp_ops import translate
from .llama_cpp_periods import representatives
from .llama_cpp_schedule import Node, root

MIXERS = ("attention", "scan", "delta_rule", "conv")
"""Ops after whose projection the last layer goes on with those rows only that give an output: all rows here, but copied."""


def build(g: Graph, tape: Tape, *, whole: bool) -> list[int]:
    """Put a pass of `tape` into `g`, all layers or (not `whole`) a few; says for each layer which of these it is like."""
    groups = [list(group) for group in regions(tape.ops)]
    sections = [(layers_of(group), group) for group in groups]
    order = sorted((layer, n) for n, (layers, _) in enumerate(sections) for layer in layers or ())
    first = next((n for n, (layers, _) in enumerate(sections) if layers), len(sections))
    current: tuple[Node, ...] = ()
    for _, group in sections[:first]:
        current = section(g, group, None)
    everyone = list(range(len(order)))
    kept, alike = (everyone, everyone) if whole else representatives(kinds(g, order, groups))
    for layer, n in (order[i] for i in kept):
        group = groups[n]
        entry = next((r.storage for op in group for r in op.reads if r.storage.follows is not None), group[0].reads[0].storage)
        stream = entry.follows.storage if layer == order[0][0] and entry.follows is not None else entry
        g.made[id(entry)] = g.made.get(id(stream), current) if stream is not entry else current
        g.last = layer == order[-1][0]
        current = section(g, group, layer)
    g.begin(len(kept))
    g.rows = None
    for layers, group in sections[first:]:
        if layers is None:
            g.made[id(group[0].reads[0].storage)] = current
            current = section(g, group, None)
    g.expand(current[0])
    root(current[0]).output = True
    return alike


def kinds(g: Graph, order: Sequence[tuple[int, int]], groups: Sequence[list[Op]]) -> list[Hashable]:
    """What tells apart layers, each given with its section: ops, cache, devices of the weights, and bytes of those on the host."""
    weights = [list(dict.fromkeys(w for op in group for w in op.weights)) for group in groups]
    found: list[Hashable] = []
    for layer, n in order:
        device = g.placed(weights[n][0], layer)[1] if g.together else g.host
        places = [g.placed(w, layer) for w in weights[n]] if device == g.host else []
        found.append((n, g.stores.get(layer), device, tuple((at, nbytes * (at == g.host)) for nbytes, at in places)))
    return found


def section(g: Graph, group: Sequence[Op], layer: int | None) -> tuple[Node, ...]:
    """The ops of one layer, or of what stands before or after them: returns what the last one writes."""
    own = {id(t) for op in group for t in op.writes}
    for op in group:
        for read in op.reads:
            if read.base is not None and id(read.storage) in own:
                g.made.pop(id(read), None)
    widths = {op.name.rpartition(".")[2]: int(op.writes[0].shape[-1]) for op in group if ".experts." in op.name}
    g.gated = widths.get("up", 0) > widths.get("act", 0)
    group, beside = side_by_side(group)
    delta = g.delta = any(op.name.endswith("delta_rule") for op in group)
    if layer is not None:
        if not delta and not beside:
            conv_state(g, layer)
        g.begin(g.segment + 1)
    mixers = [i for i, op in enumerate(group) if op.name.rpartition(".")[2] in MIXERS]
    outputs = output_op(group, mixers) if layer is not None and g.last and ROWS_LAST not in g.habits else None
    g.home = next((g.placed(w, layer)[1] for op in group for w in op.weights), g.host)
    names = {op.name.rpartition(".")[2] for op in group}
    g.by_sequence = (layer, "conv state") in g.states and ("scan" not in names or "x_proj" in names)
    g.latent = any(op.name.endswith("absorb_v") for op in group)
    for i, op in enumerate(group):
        if i == beside and layer is not None and beside:
            conv_state(g, layer)
        g.made[id(op.writes[0])] = translate(g, op, layer)
        if layer is not None and op is group[0] and any(name == "delta state" for _, name in g.states):
            g.expand(g.of(op.writes[0]))  # `ggml_build_forward_expand` after attn_norm in qwen3next.cpp
            if delta:
                conv_state(g, layer)
        if op is outputs:
            g.fewer, g.rows, g.before = True, {}, {id(node) for made in g.made.values() for node in made}
    return g.made[id(group[-1].writes[0])]


def side_by_side(group: Sequence[Op]) -> tuple[Sequence[Op], int]:
    """A layer whose attention and scan read the same norm: llama.cpp takes attention first, and norms anew for the scan, from the index on.

    Source: `falcon-h1.cpp`. Any other layer is given back as it is, with 0.
    """
    names = [op.name.rpartition(".")[2] for op in group]
    if "mixed" not in names or "scan" not in names or "attention" not in names:
        return group, 0
    end = names.index("mixed")
    start = next(i for i in range(names.index("scan"), end) if group[i].reads[0] is group[0].writes[0])
    return [group[0], *group[start:end], group[0], *group[1:start], *group[end:]], end - start + 1


def conv_state(g: Graph, layer: int) -> None:
    """A convolution's columns are read before anything else of its layer (`build_rs`), and those of other sequences: none, in a tensor
    without bytes, for which the allocator keeps a place.
    """
    if (layer, "conv state") in g.states:
        nbytes, device = g.states[layer, "conv state"]
        g.stored(device)
        cache = g.leaf("cache", "conv cache", nbytes, device)
        mine, others = g.whose()
        g.columns = g.expand(g.node("conv state", nbytes, cache, mine))
        g.stored(device, g.node("states of others", 0, cache, others))


def output_op(group: Sequence[Op], mixers: Sequence[int]) -> Op | None:
    """The op of the last layer after which only rows that give an output go on: the projection of what mixes tokens, else the last one."""
    if any(op.name.endswith(".mixed") for op in group):
        return next(op for op in group if op.name.endswith(".residual"))
    projections = [op for op in group[mixers[-1] + 1 if mixers else 0 :] if any(len(w.shape) > 1 for w in op.weights)]
    projections = [op for op in projections if not op.name.endswith("absorb_v")]
    return (projections[0] if mixers else projections[-1]) if projections else None


def regions(ops: Sequence[Op]) -> Iterator[Iterator[Op]]:
    """Runs of ops that belong together: one walk of a kind of layer, or what stands between."""
    for _, group in groupby(ops, key=lambda op: (op.region, op.in_layers)):
        yield group


def layers_of(group: Sequence[Op]) -> tuple[int, ...] | None:
    """The layers that a run of ops stands for, None outside of them."""
    return next((w.layers for op in group for w in op.weights if w.layers), None) if group[0].in_layers else None
