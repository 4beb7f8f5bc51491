"""torch.optim.AdamW: two moments in the weight's dtype; `adamw` steps over all weights at once (foreach), `adamw-fused` in one kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..tape import Weight
from . import Itemsize

NAMES = ("adamw", "adamw-fused")

BLOCK = 512
"""The smallest block of torch's allocator (`kMinBlockSize`, c10/cuda/CUDACachingAllocator.cpp)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """`exp_avg` and `exp_avg_sq`, each like the weight.

    foreach makes one more copy of the second moments (`_foreach_sqrt`), of all weights at once. fused makes none, but keeps its step
    counter on the GPU, a block of 512 B for each weight. Source: pytorch 2.13 `torch/optim/adam.py` (`_init_group`, `_multi_tensor_adam`).
    """

    fused: bool
    source: str = "pytorch 2.13 torch/optim/adam.py"
    paged: bool = False

    def states(self, weight: Weight, itemsize: int) -> int:
        return 2 * itemsize * weight.numel + (BLOCK * weight.repeats if self.fused else 0)

    def temporary(self, weights: Iterable[Weight], itemsize: Itemsize) -> int:
        return 0 if self.fused else sum(weight.numel * itemsize(weight) for weight in weights)


def optimizer(name: str) -> AdamW:
    return AdamW(fused=name == "adamw-fused")
