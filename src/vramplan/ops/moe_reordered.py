"""Experts as torchtitan runs them: tokens in the order of their experts, padded for one grouped product for each matrix."""

from __future__ import annotations

from collections.abc import Callable

from ..dim import Dim, numel
from ..tape import Tape
from ..tensors import Tensor, Weight
from .pointwise import add

ALIGNED = 8
"""An expert's rows are padded to a multiple of it, so that so many for each expert are the most (torchtitan 0.2.2 `models/moe/utils.py`,
TOKEN_GROUP_ALIGN_SIZE_M)."""


def reordered(
    t: Tape,
    x: Tensor,
    weights: Tensor,
    *,
    rows: Dim,
    ffn: int,
    n_experts: int,
    ups: tuple[Weight, ...],
    downs: tuple[Weight, ...],
    beside: Callable[[], Tensor] | None = None,
) -> Tensor:
    """[b, s, hidden] by the `weights` [b, s, top_k] of each token's experts -> [b, s, hidden]; `rows` are b·s·top_k.

    Backward keeps the orders of the rows, their padded input, gate and up, the activated gate, the product, and the outputs in the tokens'
    order in fp32, which their weights are applied to. The frame holds the rows before and after the experts. What is `beside` them, shared
    experts, runs before the rows come back to their order, and is added at the end.

    Source: torchtitan 0.2.2 `models/moe/moe.py`, MoE, TokenReorderer and _run_experts_grouped_mm, and `models/moe/utils.py`.
    """
    hidden, size = x.shape[-1], x.itemsize
    ranks = t.kernels.expert_ranks
    padded = Dim(int(rows) + ALIGNED * int(n_experts) // ranks, "padded rows")
    flops = 2 * int(rows) * int(hidden) * int(ffn)
    with t.module("", x, weights):
        order = t.hold(t.op("experts.order", (weights,), (rows,), itemsize=8, saves_out=True))
        source = t.op("experts.source", (order,), (rows,), itemsize=8, saves_out=True)
        routed = t.hold(t.op("experts.routed", (x, source), (rows, hidden), itemsize=size))
        received = routed if ranks == 1 else t.op("experts.received", (routed,), (rows, hidden), itemsize=size)
        stacked = t.op("experts.stacked", (received,), (rows, hidden), itemsize=size, passes=True)
        y = t.op("experts.padded", (stacked,), (padded, hidden), itemsize=size)
        gate = t.op("experts.gate", (y,), (padded, ffn), itemsize=size, weights=ups[:1], flops=flops, saves=(y,))
        act = t.op("experts.act", (gate,), (padded, ffn), itemsize=size, saves=(gate,))
        up = t.op("experts.up", (y,), (padded, ffn), itemsize=size, weights=ups[1:], flops=flops, saves=(y,))
        gated = t.op("experts.gated", (act, up), (padded, ffn), itemsize=size, saves=(act, up))
        down = t.op("experts.down", (gated,), (padded, hidden), itemsize=size, weights=downs, flops=flops, saves=(gated,))
        output = t.op("experts.output", (down,), (rows, hidden), itemsize=size)
        output = t.hold(output if ranks == 1 else t.op("experts.returned", (output,), (rows, hidden), itemsize=size))
        shared = beside() if beside else None
        unsorted = t.hold(t.op("experts.unsorted", (output, order), (rows, hidden), itemsize=size))
        wide = t.op("experts.float", (unsorted,), (rows, hidden), itemsize=4)
        summed = t.op("experts.combine", (weights, wide), x.shape, itemsize=4, flops=2 * numel((rows, hidden)), saves=(weights, wide))
        routed = t.op("experts.cast", (summed,), x.shape, itemsize=size)
        return add(t, shared, routed, "shared") if shared else routed
