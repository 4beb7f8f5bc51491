"""Mixture of experts: the router and the routed experts' matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..dim import Dim, numel
from ..tape import Tape
from ..tensors import Tensor, Weight
from .linear import linear
from .lora import merged
from .moe_batched import batched
from .moe_dispatched import dispatched
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
    caches). Python's modules (frames `held`) make more: see `_grouped`, which `normalised` and `fp32_weights` are for, and `looped`.
    What runs `beside` them has its place within `reordered`, which adds it; else the caller does.
    """
    hidden = x.shape[-1]
    ffn = Dim(int(ffn)) if t.kernels.experts == "dispatched" else ffn  # a rank has whole experts, whatever else is split
    rows = x.shape[0] * x.shape[1] * Dim(top_k, "top_k")
    gates = 2 if fused_up else len(up)
    if t.kernels.frames == "held" and t.kernels.experts == "looped":
        weighting = _weights(t, probabilities, top_k, normalised=normalised, itemsize=t.itemsize)
        return looped(t, x, weighting, ffn=ffn, n_experts=n_experts, top_k=top_k, up=up, down=down)

    def matrix(name: str, out: int, width: int) -> None:
        shape = (width, out) if transposed else (out, width)
        t.weight(name, shape, "experts", copies=n_experts, active=top_k)
        if bias:
            t.weight(_bias(name), (out,), "experts", copies=n_experts, active=top_k)

    first = len(t.weights)
    for name in up:
        matrix(name, 2 * ffn if fused_up else ffn, hidden)
    middle = len(t.weights)
    matrix(down, hidden, ffn)
    ups, downs = tuple(t.weights[first:middle]), tuple(t.weights[middle:])

    flops = 2 * int(rows) * int(hidden) * int(ffn)
    if t.kernels.experts == "dispatched":
        return dispatched(t, x, probabilities, rows=rows, ffn=ffn, gates=gates, ups=ups, downs=downs)
    if t.kernels.frames == "held":
        wide = fp32_weights or t.kernels.experts == "reordered"
        weighting = _weights(t, probabilities, top_k, normalised=normalised, itemsize=4 if wide else t.itemsize)
        if t.kernels.experts == "reordered":
            return reordered(t, x, weighting, rows=rows, ffn=ffn, n_experts=n_experts, ups=ups, downs=downs, beside=beside)
        if t.kernels.experts == "batched":
            first_sum = adapted(t, "gate_up_proj", (n_experts, gates * ffn, hidden), ups)
            sums = (*first_sum, *adapted(t, "down_proj", (n_experts, hidden, ffn), downs))
            return batched(t, x, weighting, ffn=ffn, gates=gates, ups=ups, downs=downs, sums=sums)
        return _grouped(t, x, weighting, rows, ffn, gates, ups, downs, n_experts)
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


def _grouped(
    t: Tape,
    x: Tensor,
    weights: Tensor,
    rows: Dim,
    ffn: int,
    gates: int,
    ups: tuple[Weight, ...],
    downs: tuple[Weight, ...],
    n_experts: int,
) -> Tensor:
    """transformers' `grouped_mm_experts_forward` (5.23 `integrations/moe.py`): [b, s, hidden] -> [b, s, hidden].

    Backward keeps three orders of the rows (int64), the experts' offsets (int32), the permuted input, gate and up, the activated gate, the
    product, the output and its weights. The frame holds the permuted input, the output and the orders; the weighted output has the weights'
    precision.
    """
    hidden, size = x.shape[-1], x.itemsize
    flops = 2 * int(rows) * int(hidden) * int(ffn)
    with t.module("", x, weights):
        ids = t.hold(t.op("experts.ids", (weights,), (rows,), itemsize=8))
        order = t.hold(t.op("experts.order", (ids,), (rows,), itemsize=8, saves_out=True))
        bins = t.hold(t.op("experts.bins", (ids,), (rows,), itemsize=4))
        counts = t.hold(t.op("experts.counts", (bins,), (n_experts,), itemsize=4))
        offsets = t.hold(t.op("experts.offsets", (counts,), (n_experts,), itemsize=4))
        source = t.op("experts.source", (order,), (rows,), itemsize=8, saves_out=True)
        permuted = t.hold(t.op("experts.permute", (x, source), (rows, hidden), itemsize=size))
        share = t.hold(t.op("experts.share", (weights, order), (rows, 1), itemsize=weights.itemsize))
        up = adapted(t, "gate_up_proj", (n_experts, gates * ffn, hidden), ups)
        raised = t.op(
            "experts.up",
            (permuted, offsets, *up),
            (rows, gates * ffn),
            itemsize=size,
            weights=ups,
            flops=gates * flops,
            saves=(*needed(permuted, ups, up), offsets, *up),
            always=True,
        )
        acted = t.op("experts.act", (raised,), (rows, ffn), itemsize=size, saves=(raised,))
        if gates == 2:
            acted = t.op("experts.gated", (acted, raised), (rows, ffn), itemsize=size, saves=(acted, raised))
        down = adapted(t, "down_proj", (n_experts, hidden, ffn), downs)
        lowered = t.op(
            "experts.down",
            (acted, offsets, *down),
            (rows, hidden),
            itemsize=size,
            weights=downs,
            flops=flops,
            saves=(*needed(acted, downs, down), *down),
            always=True,
        )
        t.hold(lowered)
        wide = max(size, share.itemsize)
        doubled = numel((rows, hidden)) * wide if share.grad else 0  # the share's gradient, before it is summed
        saves = (lowered, share)
        weighted = t.op("experts.weighted", saves, (rows, hidden), itemsize=wide, saves=saves, backward_workspace=doubled)
        back = t.hold(t.op("experts.back", (order,), (rows,), itemsize=8, saves_out=True))
        restored = t.hold(t.op("experts.restore", (weighted, back), (rows, hidden), itemsize=wide))
        summed = t.op("experts.combine", (restored,), x.shape, itemsize=wide)
        return summed if wide == size else t.op("experts.cast", (summed,), x.shape, itemsize=size)


def needed(x: Tensor, weights: tuple[Weight, ...], sums: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """`x`, where the matrices that it is multiplied with get a gradient, or their sums with adapters do."""
    return (x,) if sums or any(weight.trained for weight in weights) else ()


def adapted(t: Tape, module: str, shape: tuple[int, int, int], weights: tuple[Weight, ...]) -> tuple[Tensor, ...]:
    """The matrices of all experts with the training method's adapter added, where it has one; held until the experts return.

    Two matrices in one have an adapter of twice the rank. Source: PEFT 0.21 `utils/transformers_weight_conversion.py`.
    """
    matrices = [weight for weight in weights if len(weight.shape) == 2]
    adapters = [t.method.adapter(weight.name.removesuffix(".weight"), weight) if t.method else None for weight in matrices]
    first = adapters[0]
    return () if first is None else (t.hold(merged(t, module, shape, replace(first, rank=first.rank * len(matrices)))),)


def _bias(name: str) -> str:
    """The bias beside a weight, as checkpoints name it: `a.weight` -> `a.bias`, `gate_up_proj` -> `gate_up_proj_bias`."""
    return name.removesuffix(".weight") + ".bias" if name.endswith(".weight") else f"{name}_bias"
