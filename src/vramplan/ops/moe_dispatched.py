"""Experts on several ranks, as Megatron runs them: tokens are sorted, sent to the ranks of their experts, and come back weighted."""

from __future__ import annotations

from collections.abc import Sequence

from ..dim import Dim
from ..tape import Tape
from ..tensors import Tensor, Weight
from .lora_parallel import beside


def dispatched(
    t: Tape, x: Tensor, probabilities: Tensor, *, rows: Dim, ffn: int, gates: int, ups: Sequence[Weight], downs: Sequence[Weight]
) -> Tensor:
    """Each token through its experts: [b, s, hidden] -> [b, s, hidden], `rows` of b·s·top_k as they are sent.

    No token is dropped, and each rank gets as many as it sends, or more by the kernels' `imbalance`. Rows are permuted, sent, and sorted by
    the rank's own experts, each time as a new tensor. Backward keeps the choice (int64) and the probabilities [b, s, experts] in fp32, the
    map of the permutation (int32, two numbers for each token and expert and one more), the sorted rows, gate and up, the weights of rows in
    fp32, and their product, which is weighted before the last product.
    Source: Megatron-Core 0.19 `core/transformer/moe/token_dispatcher.py` MoEAlltoAllTokenDispatcher, `moe/experts.py` TEGroupedMLP,
    `core/fusions/fused_bias_swiglu.py` WeightedSwiGLUFunction; TransformerEngine 2.9 `pytorch/permutation.py` _moe_permute_mask_map.
    """
    b, s, hidden = x.shape
    come = rows if t.kernels.imbalance == 1000 else rows * Dim(t.kernels.imbalance, "per mille") // 1000
    count = probabilities.shape[-1]
    flops = 2 * int(come) * int(hidden) * int(ffn)
    chosen = t.tensor("experts.chosen", (b, s, rows // (b * s)), itemsize=8)
    shares = t.op("experts.probabilities", (probabilities,), probabilities.shape, itemsize=4, saves=(chosen,), extra=(chosen,))
    order = t.tensor("experts.order", (b, s, Dim(2 * int(count) + 1)), itemsize=4)
    weights = t.op("experts.weights", (shares,), (come,), itemsize=4, saves=(order,), extra=(order,))
    with t.module("", x):
        permuted = t.hold(t.op("experts.permute", (x,), (rows, hidden), saves=(order,)))
        received = t.op("experts.dispatch", (permuted,), (come, hidden))
        ordered = t.hold(t.op("experts.sort", (received,), (come, hidden)))
        raised = t.op("experts.up", (ordered,), (come, gates * ffn), weights=tuple(ups), flops=gates * flops, saves=(ordered,))
        raised = beside(t, ordered, raised, "experts.linear_fc1", ups[0])
        acted = t.op("experts.act", (raised, weights), (come, ffn), saves=(raised, weights))
        lowered = t.op("experts.down", (acted,), (come, hidden), weights=tuple(downs), flops=flops, saves=(acted,))
        lowered = beside(t, acted, lowered, "experts.linear_fc2", downs[0])
        unsorted = t.op("experts.unsort", (lowered,), (come, hidden))
        returned = t.op("experts.return", (unsorted,), (rows, hidden))
        return t.op("experts.combine", (returned,), x.shape)
