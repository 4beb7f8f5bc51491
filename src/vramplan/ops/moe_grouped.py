"""Experts as transformers trains them since 5.0: the rows in the order of their experts, one product for all of them."""

from __future__ import annotations

from dataclasses import replace

from ..dim import Dim, numel
from ..tape import Tape
from ..tensors import Tensor, Weight
from .lora import merged


def grouped(
    t: Tape,
    x: Tensor,
    weights: Tensor,
    *,
    rows: Dim,
    ffn: int,
    gates: int,
    n_experts: int,
    ups: tuple[Weight, ...],
    downs: tuple[Weight, ...],
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
        raised = _product(t, "experts.up", permuted, offsets, up, gates * ffn, ups, gates * flops)
        acted = t.op("experts.act", (raised,), (rows, ffn), itemsize=size, saves=(raised,))
        if gates == 2:
            acted = t.op("experts.gated", (acted, raised), (rows, ffn), itemsize=size, saves=(acted, raised))
        down = adapted(t, "down_proj", (n_experts, hidden, ffn), downs)
        lowered = t.hold(_product(t, "experts.down", acted, offsets, down, hidden, downs, flops))
        return _combined(t, lowered, share, order, x)


def _product(
    t: Tape, name: str, x: Tensor, offsets: Tensor, sums: tuple[Tensor, ...], width: int, weights: tuple[Weight, ...], flops: int
) -> Tensor:
    """[rows, in] -> [rows, width], each row by its expert's matrix, or its sum with an adapter. The input is kept where one trains."""
    kept = (x,) if sums or any(weight.trained for weight in weights) else ()
    shape, reads = (x.shape[0], width), (x, offsets, *sums)
    return t.op(name, reads, shape, itemsize=x.itemsize, weights=weights, flops=flops, saves=(*kept, offsets, *sums), always=True)


def _combined(t: Tape, lowered: Tensor, share: Tensor, order: Tensor, x: Tensor) -> Tensor:
    """The rows, weighted, in their first order, and summed: [b, s, hidden]."""
    shape, wide = lowered.shape, max(x.itemsize, share.itemsize)
    doubled = numel(shape) * wide if share.grad else 0  # the share's gradient, before it is summed
    saves = (lowered, share)
    weighted = t.op("experts.weighted", saves, shape, itemsize=wide, saves=saves, backward_workspace=doubled)
    back = t.hold(t.op("experts.back", (order,), order.shape, itemsize=8, saves_out=True))
    restored = t.hold(t.op("experts.restore", (weighted, back), shape, itemsize=wide))
    summed = t.op("experts.combine", (restored,), x.shape, itemsize=wide)
    return summed if wide == x.itemsize else t.op("experts.cast", (summed,), x.shape, itemsize=x.itemsize)


def adapted(t: Tape, module: str, shape: tuple[int, int, int], weights: tuple[Weight, ...]) -> tuple[Tensor, ...]:
    """The matrices of all experts with the training method's adapter added, where it has one; held until the experts return.

    Two matrices in one have an adapter of twice the rank. Source: PEFT 0.21 `utils/transformers_weight_conversion.py`.
    """
    matrices = [weight for weight in weights if len(weight.shape) == 2]
    adapters = [t.method.adapter(weight.name.removesuffix(".weight"), weight) if t.method else None for weight in matrices]
    first = adapters[0]
    return () if first is None else (t.hold(merged(t, module, shape, replace(first, rank=first.rank * len(matrices)))),)
