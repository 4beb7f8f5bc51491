"""GaLore (Zhao et al. 2024, arXiv:2403.03507): moments of gradients projected to rank r, and the projections; AdamW for the rest.

Projected are the linear layers of attention and MLP, as in GaLore's `torchrun_main.py`; with transformers' Trainer `optim_target_modules`
says. `-layerwise` steps each weight inside the backward pass. It does not know cuSOLVER's own workspace for the decomposition of a
gradient, which is made in the first step and every 200th. Source: galore-torch 1.0 (`proj_type` std).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..tensors import Weight
from .base import Locals, Optimizer, elements, in_order
from .bitsandbytes import blockwise

NAMES = ("galore-adamw", "galore-adamw-8bit", "galore-adamw-layerwise", "galore-adamw-8bit-layerwise")

RANK = 128
"""transformers 5.23 `trainer_optimizer.py`, _get_galore_optimizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GaLore(Optimizer):
    """A matrix [m, n] keeps two moments of [max(m, n), r] and a projection of [r, min(m, n)].

    Of an fp32 gradient the projection is a view, and keeps all its min(m, n)² singular vectors alive (`get_orthogonal_matrix`).
    """

    rank: int
    source: str = "galore-torch 1.0 adamw.py, galore_projector.py"

    def kept(self, weight: Weight, itemsize: int) -> Sequence[int]:
        if not projected(weight):
            return self._moments(elements(weight), itemsize)
        k = min(weight.shape)
        projection = 4 * k * k if itemsize == 4 else itemsize * k * min(self.rank, k)
        return [projection, *self._moments(self._low(weight), itemsize)]

    def order(self, weights: Iterable[Weight]) -> Iterable[Weight]:
        return sorted(in_order(weights), key=projected)

    def turn(self, names: Locals, weight: Weight, itemsize: int) -> None:
        """The normalised gradient is projected back and scaled: two tensors of the weight's size, of which one is held."""
        whole = elements(weight) * itemsize
        low = self._low(weight) * itemsize if projected(weight) else whole
        names.bind("grad", 0)
        if projected(weight):
            names.use(*decomposition(weight, itemsize))
            names.bind("grad", low)
        names.bind("denom", low)
        names.bind("norm_grad", low)
        if projected(weight):
            names.bind("norm_grad", whole, whole)

    def _low(self, weight: Weight) -> int:
        return max(weight.shape) * min(self.rank, *weight.shape)

    def _moments(self, count: int, itemsize: int) -> Sequence[int]:
        return [count * itemsize] * 2


class GaLore8bit(GaLore):
    """Moments in bitsandbytes' 8 bits. A matrix is stepped in the small space while a copy of it waits; its full gradient is let go."""

    __slots__ = ()

    def turn(self, names: Locals, weight: Weight, itemsize: int) -> None:
        if projected(weight):
            whole, low = elements(weight) * itemsize, self._low(weight) * itemsize
            names.use(*decomposition(weight, itemsize))
            names.use(whole, low, low)
            names.free(whole - low)

    def _moments(self, count: int, itemsize: int) -> Sequence[int]:
        values, scales = blockwise(count, 2, 8)
        return [*values, *scales]


def projected(weight: Weight) -> bool:
    """Whether it is a matrix of a layer's attention or MLP."""
    return weight.kind == "linear" and len(weight.shape) == 2 and weight.layers is not None


def decomposition(weight: Weight, itemsize: int) -> Sequence[int]:
    """`torch.linalg.svd` of a gradient [m, n] in fp32: U, s, V, and a column-major copy (svd_cusolver, BatchLinearAlgebraLib.cpp)."""
    m, n = weight.shape
    k = min(m, n)
    return [4 * m * n] * (1 if itemsize == 4 else 2) + [4 * m * k, 4 * k, 4 * k * n]


def optimizer(name: str, *, rank: int = RANK) -> Optimizer:
    kind = GaLore8bit if "8bit" in name else GaLore
    return kind(rank=rank, in_backward=name.endswith("layerwise"))
