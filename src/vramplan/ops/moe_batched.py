"""Experts as transformers' `generate` computes them in the decode: a copy of the chosen experts' matrices for each token."""

from __future__ import annotations

from ..dim import Dim, numel
from ..tape import Tape
from ..tensors import Tensor, Weight


def batched(
    t: Tape,
    x: Tensor,
    weights: Tensor,
    *,
    ffn: int,
    gates: int,
    ups: tuple[Weight, ...],
    downs: tuple[Weight, ...],
    sums: tuple[Tensor, ...] = (),
) -> Tensor:
    """[b, s, hidden] -> [b, s, hidden], by copies [b·s·top_k, out, in] of the chosen matrices (their `sums` with adapters), and of biases.

    Those of gate and up live until those of down are there, as one name is bound to both. FLOPs as for grouped products. Source:
    transformers 5.23 `integrations/moe.py`, batched_mm_experts_forward; `generation/utils.py`, _optimize_model_for_decode (since 5.0).
    """
    hidden, size, top_k = x.shape[-1], x.itemsize, weights.shape[-1]
    rows = x.shape[0] * x.shape[1] * Dim(top_k, "top_k")
    flops = 2 * int(rows) * int(hidden) * int(ffn)
    with t.module("", x, weights):
        repeated = t.hold(t.op("experts.repeated", (x,), (rows, hidden), itemsize=size))
        chosen = t.op("experts.chosen_up", (weights,), (rows, _elements(ups)), itemsize=size)
        raised = t.op("experts.up", (repeated, chosen), (rows, gates * ffn), itemsize=size, weights=ups, flops=gates * flops)
        acted = t.op("experts.act", (raised,), (rows, ffn), itemsize=size)
        if gates == 2:
            acted = t.op("experts.gated", (acted, raised), (rows, ffn), itemsize=size)
        second = t.hold(t.op("experts.chosen_down", (chosen, *sums), (rows, _elements(downs)), itemsize=size))
        lowered = t.hold(t.op("experts.down", (acted, second), (rows, hidden), itemsize=size, weights=downs, flops=flops))
        wide = max(size, weights.itemsize)
        weighted = t.hold(t.op("experts.weighted", (lowered, weights), (rows, hidden), itemsize=wide))
        summed = t.op("experts.combine", (weighted,), x.shape, itemsize=wide)
        return summed if wide == size else t.op("experts.cast", (summed,), x.shape, itemsize=size)


def _elements(weights: tuple[Weight, ...]) -> int:
    """Elements that one expert has in `weights`."""
    return sum(numel(weight.shape) for weight in weights)
