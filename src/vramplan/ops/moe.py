"""Mixture of experts: the router and the routed experts' matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ..dim import Dim
from ..tape import Tape
from ..tensors import Tensor, Weight
from .linear import linear
from .moe_batched import batched
from .moe_dispatched import dispatched
from .moe_grouped import adapted, grouped
from .moe_looped import looped
from .moe_reordered import reordered


def route(
    t: Tape, x: Tensor, name: str, n_experts: int, *, bias: bool = False, dtype: str | None = None, suffix: str = ".weight"
) -> Tensor:
    """Router scores: [..., hidden] -> [..., n_experts], and their softmax or sigmoid in fp32. The mixture's frame holds the scores."""
    scores = t.hold(linear(t, x, name, n_experts, bias=bias, kind="router", dtype=dtype, suffix=suffix))
    return t.op(f"{name}.probabilities", (scores,), scores.shape, itemsize=4, saves_out=True)


def experts(
    t: Tape,
    x: Tensor,
    probabilities: Tensor,
    *,
    ffn: int,
    n_experts: int,
    top_k: int,
    up: Sequence[str],
    down: str,
    bias: bool = False,
    transposed: bool = False,
    fused_up: bool = False,
    normalised: bool = False,
    fp32_weights: bool = False,
    beside: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Each token through its `top_k` of `n_experts` MLPs: [b, s, hidden] -> [b, s, hidden].

    `up` names the matrices [ffn, hidden] before the activation (two where it is gated), `down` the one after it, as the checkpoint names
    them, `{e}` standing for the expert (`fused_up`: one matrix [2·ffn, hidden]; `transposed`: stored as [in, out]). Working set, in rows of
    b·s·top_k: the permuted input, gate and up, their product, the output, as in vLLM's fused_moe (`fused_experts_impl`: three intermediate
    caches). Python's modules (frames `held`) make more: see `grouped`, which `normalised` and `fp32_weights` are for, and `looped`.
    What runs `beside` them has its place within `reordered`, which adds it; else the caller does.
    """
    hidden, kind = x.shape[-1], t.kernels.experts
    ffn = Dim(int(ffn)) if kind == "dispatched" else ffn  # a rank has whole experts, whatever else is split
    rows = x.shape[0] * x.shape[1] * Dim(top_k, "top_k")
    gates = 2 if fused_up else len(up)
    held = t.kernels.frames == "held"
    wide = fp32_weights or kind == "reordered"
    weighted = partial(_weights, t, probabilities, top_k, normalised=normalised, itemsize=4 if wide else t.itemsize)
    if held and kind == "looped":
        weighting = _weights(t, probabilities, top_k, normalised=normalised, itemsize=t.itemsize)
        return looped(t, x, weighting, ffn=ffn, n_experts=n_experts, top_k=top_k, up=up, down=down)
    matrix = partial(_matrix, t, bias=bias, transposed=transposed, copies=n_experts, active=top_k)
    ups = tuple(weight for name in up for weight in matrix(name, 2 * ffn if fused_up else ffn, hidden))
    downs = matrix(down, hidden, ffn)
    if kind == "dispatched":
        return dispatched(t, x, probabilities, rows=rows, ffn=ffn, gates=gates, ups=ups, downs=downs)
    if held and kind == "reordered":
        return reordered(t, x, weighted(), rows=rows, ffn=ffn, n_experts=n_experts, ups=ups, downs=downs, beside=beside)
    if held and kind == "batched":
        weighting = weighted()
        first_sum = adapted(t, "gate_up_proj", (n_experts, gates * ffn, hidden), ups)
        sums = (*first_sum, *adapted(t, "down_proj", (n_experts, hidden, ffn), downs))
        return batched(t, x, weighting, ffn=ffn, gates=gates, ups=ups, downs=downs, sums=sums)
    if held:
        return grouped(t, x, weighted(), rows=rows, ffn=ffn, gates=gates, n_experts=n_experts, ups=ups, downs=downs)
    return _fused(t, x, probabilities, rows, ffn, gates, ups, downs)


def _matrix(t: Tape, name: str, out: int, width: int, *, bias: bool, transposed: bool, copies: int, active: int) -> tuple[Weight, ...]:
    """A matrix of every expert, of which a token visits `active`, and its bias; with what training copies of them."""
    first = len(t.weights)
    t.weight(name, (width, out) if transposed else (out, width), "experts", copies=copies, active=active)
    if bias:
        t.weight(_bias(name), (out,), "experts", copies=copies, active=active)
    return tuple(t.weights[first:])


def _fused(
    t: Tape, x: Tensor, probabilities: Tensor, rows: Dim, ffn: int, gates: int, ups: tuple[Weight, ...], downs: tuple[Weight, ...]
) -> Tensor:
    """An engine's kernels: one that has workspaces of its own, or three tensors between its steps."""
    hidden = x.shape[-1]
    flops = 2 * int(rows) * int(hidden) * int(ffn)
    if t.kernels.experts == "workspaces":
        return t.op("experts.fused", (x, probabilities), x.shape, weights=(*ups, *downs), flops=(gates + 1) * flops)
    permuted = t.op("experts.permute", (x, probabilities), (rows, hidden))
    raised = t.op("experts.up", (permuted,), (rows, gates * ffn), weights=ups, flops=gates * flops, saves=(permuted,))
    acted = t.op("experts.act", (raised,), (rows, ffn), saves=(raised,))
    lowered = t.op("experts.down", (acted,), (rows, hidden), weights=downs, flops=flops, saves=(acted,))
    return t.op("experts.combine", (lowered, probabilities), x.shape, saves=(lowered,))


def _weights(t: Tape, probabilities: Tensor, top_k: int, *, normalised: bool, itemsize: int) -> Tensor:
    """The weights of a token's experts, [b, s, top_k]; backward keeps the choice (int64), and what a `normalised` sum needs in fp32.

    Source: transformers 5.23 `models/qwen3_moe/modeling_qwen3_moe.py`, Qwen3MoeTopKRouter.
    """
    b, s = probabilities.shape[:2]
    chosen = t.hold(t.tensor("experts.chosen", (b, s, top_k), itemsize=8))
    weights = t.op("experts.top_k", (probabilities,), (b, s, top_k), itemsize=4, saves=(chosen,), saves_out=normalised, extra=(chosen,))
    if normalised:
        total = t.op("experts.total", (weights,), (b, s, 1), itemsize=4, saves_out=True)
        weights = t.op("experts.normalised", (weights, total), weights.shape, itemsize=4)
    return weights if itemsize == 4 else t.op("experts.weights", (weights,), weights.shape, itemsize=itemsize)


def _bias(name: str) -> str:
    """The bias beside a weight, as checkpoints name it: `a.weight` -> `a.bias`, `gate_up_proj` -> `gate_up_proj_bias`."""
    return name.removesuffix(".weight") + ".bias" if name.endswith(".weight") else f"{name}_bias"
