"""Sophia (Liu et al. 2023, arXiv:2305.14342), SophiaG: a momentum and a diagonal of the Hessian, weight by weight.

Every tenth step the diagonal comes from a backward pass of its own, over sampled labels: its gradients take what a step's do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..tensors import Weight
from .base import Locals, Optimizer, elements

NAMES = ("sophia",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sophia(Optimizer):
    """`exp_avg` and `hessian`, each like the weight; the step counter is in host memory."""

    source: str = "Liuhong99/Sophia sophia.py, SophiaG"

    def kept(self, weight: Weight, itemsize: int) -> Sequence[int]:
        return [elements(weight) * itemsize] * 2

    def turn(self, names: Locals, weight: Weight, itemsize: int) -> None:
        """`ratio = (exp_avg.abs() / (rho * bs * hess + 1e-15)).clamp(None, 1)`, then the sign: three tensors for a moment, one held."""
        nbytes = elements(weight) * itemsize
        names.use(nbytes, nbytes, nbytes)
        names.bind("ratio", nbytes, nbytes)
        names.use(nbytes)


def optimizer(name: str) -> Optimizer:
    return Sophia()
