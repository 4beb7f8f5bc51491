"""A matrix product with a weight as it is stored, and what autocast does to its operands."""

from __future__ import annotations

from ..dim import numel
from ..tape import Tape
from ..tensors import Tensor, Weight
from .fp8 import fp8_product, runs_in_fp8


def product(t: Tape, x: Tensor, name: str, out: int, weights: tuple[Weight, ...]) -> Tensor:
    """x Wᵀ (+ b) by the first of `weights`: [..., in] -> [..., out]. Backward keeps x. FLOPs: 2 · rows · in · out.

    Under autocast the input and the weights are copied to the lower precision (aten `autocast_mode.cpp`, `cached_cast`).
    Source: `aten::addmm` in torch `utils/flop_counter.py` and `derivatives.yaml` (self, mat2 are saved).
    """
    entry = lowered(t, x, f"{name}.input")
    if runs_in_fp8(t, weights[0]):
        return fp8_product(t, entry, name, out, weights)
    return t.op(
        name,
        (entry,),
        (*x.shape[:-1], out),
        itemsize=t.autocast or x.itemsize,
        weights=weights,
        flops=2 * numel(x.shape) * int(out),
        saves=(entry,),
        extra=t.cast_weights(weights, x.storage.grad, x.storage.late),
    )


def lowered(t: Tape, x: Tensor, name: str) -> Tensor:
    """`x`, or under autocast its copy in the lower precision: each op that asks for one makes its own."""
    if not t.autocast or x.itemsize <= t.autocast:
        return x
    return t.op(f"{name}.autocast", (x,), x.shape, itemsize=t.autocast)
