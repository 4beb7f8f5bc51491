"""Muon (Jordan et al. 2024) for the matrices of the layers, fused AdamW for the rest: embeddings, the head and vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..tensors import Weight
from .adamw import Fused
from .base import Locals, Optimizer, elements

NAMES = ("muon",)

ADAMW = Fused()


@dataclass(frozen=True, slots=True, kw_only=True)
class Muon(Optimizer):
    """One momentum like the weight (torch.optim.Muon takes matrices only). Its step orthogonalises one matrix at a time, in bf16.

    Newton and Schulz's iteration holds the matrix before and after, and two products of its shorter side squared
    (`_zeropower_via_newtonschulz`), beside the update that it starts from.
    """

    source: str = "pytorch 2.13 torch/optim/_muon.py; AdamW: torch/optim/adam.py"

    def kept(self, weight: Weight, itemsize: int) -> Sequence[int]:
        return [elements(weight) * itemsize] if orthogonalised(weight) else ADAMW.kept(weight, itemsize)

    def turn(self, names: Locals, weight: Weight, itemsize: int) -> None:
        if not orthogonalised(weight):
            return
        matrix, square = 2 * elements(weight), 2 * min(weight.shape) ** 2
        names.bind("update", elements(weight) * itemsize)
        names.use(matrix, matrix, square, square)
        names.bind("update", matrix)


def orthogonalised(weight: Weight) -> bool:
    """Whether it is one of Muon's: a matrix of a layer. Fused experts have three dimensions, which torch's Muon refuses."""
    return len(weight.shape) == 2 and weight.copies == 1 and weight.kind not in ("embed", "head")


def optimizer(name: str) -> Optimizer:
    return Muon()
