"""Products with torchao's NF4Tensor, which torchtune's QLoRA holds frozen linear layers in."""

from __future__ import annotations

from fractions import Fraction

from ..dim import numel
from ..tape import Tape
from ..tensors import Tensor, Weight

UNPACKING = 8 + 1 + 1 + 1 + 1 + 2 + Fraction(2, 64)
"""Bytes per element while a weight is unpacked to 16 bits: two halves of indices in int64, of what they stand for, and of that times its
scale; the two stacked; the scales. Source: torchao 0.10 `dtypes/nf4tensor.py` NF4Tensor.get_original_weight; measured with the profiler
of torch 2.13 on a CPU: 14.03125 B per element."""


def nf4tensor_product(t: Tape, x: Tensor, name: str, out: int, weights: tuple[Weight, ...]) -> Tensor:
    """[..., in] -> [..., out] by the first of `weights`, unpacked for it forward and backward. Backward keeps the packed weight.

    Source: torchao 0.10 `dtypes/nf4tensor.py` LinearNF4.
    """
    n = numel(weights[0].shape)
    results = numel(x.shape[:-1]) * int(out) * x.itemsize
    unpacking = int(n * UNPACKING)
    y = t.op(
        name,
        (x,),
        (*x.shape[:-1], out),
        itemsize=x.itemsize,
        weights=weights[:1],
        flops=2 * numel(x.shape) * int(out),
        workspace=max(unpacking - results, 2 * n),
        backward_workspace=max(unpacking - x.nbytes, 2 * n),
    )
    return t.op(f"{name}.biased", (y,), y.shape, itemsize=y.itemsize, weights=weights[1:], passes=True) if weights[1:] else y
