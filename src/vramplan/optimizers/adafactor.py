"""transformers' Adafactor: a row and a column of second moments for each matrix (Shazeer & Stern 2018, arXiv:1804.04235)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..tape import Weight
from . import Itemsize

NAMES = ("adafactor",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adafactor:
    """Without a first moment (`beta1` None, the Trainer's default). The step works in fp32 on one weight at a time.

    There, 16-bit weights and gradients are copied to fp32, and the squared gradient and the update made: 4 × 4 B per element, 2 × 4 B for
    fp32 weights. Source: transformers 5.23 `optimization.py`, Adafactor.step; states are in the gradient's dtype (`.to(grad)`), fp32 after
    its cast.
    """

    source: str = "transformers 5.23 optimization.py, Adafactor"
    paged: bool = False

    def states(self, weight: Weight, itemsize: int) -> int:
        if len(weight.shape) < 2:
            return 4 * weight.numel
        rows, cols = int(weight.shape[0]), weight.numel // weight.repeats // weight.copies // int(weight.shape[0])
        return 4 * (rows + cols) * weight.copies * weight.repeats

    def temporary(self, weights: Iterable[Weight], itemsize: Itemsize) -> int:
        return max((weight.numel // weight.repeats * (16 if itemsize(weight) < 4 else 8) for weight in weights), default=0)


def optimizer(name: str) -> Adafactor:
    return Adafactor()
