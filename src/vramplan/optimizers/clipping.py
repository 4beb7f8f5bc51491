"""Gradient clipping by the norm of all gradients: torch.nn.utils.clip_grad_norm_, which scales gradients in place.

Little, but not nothing: norms are first summed by chunk, in a table that is for every weight as wide as the largest one needs.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..tensors import Weight
from .base import BLOCK, Itemsize, elements

CHUNK = 65_536
"""Elements that one block of the kernel sums (`kChunkSize`, aten/src/ATen/native/cuda/MultiTensorApply.cuh)."""
SOURCE = "pytorch 2.13 aten/src/ATen/native/cuda/ForeachReduceOp.cu, foreach_tensor_norm_cuda"


def partial_norms(tensors: int, largest: int) -> int:
    """Bytes of the table of sums, in fp32, for so many tensors of which the `largest` has so many elements."""
    return 4 * tensors * -(-largest // CHUNK)


def clipping(weights: Iterable[Weight], itemsize: Itemsize) -> int:
    """Bytes that it takes: the table, and a norm for each tensor of the `weights`, in a block of its own.

    Gradients of each dtype are summed apart, one dtype after the other; all norms are there at the end.
    """
    some, tables, norms = list(weights), [0], 0
    for size in {itemsize(weight) for weight in some}:
        alike = [weight for weight in some if itemsize(weight) == size]
        count = sum(weight.repeats for weight in alike)
        tables.append(partial_norms(count, max(map(elements, alike))))
        norms += BLOCK * count
    return max(tables) + norms
