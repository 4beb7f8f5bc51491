"""transformers' Adafactor: a row and a column of second moments for each matrix (Shazeer & Stern 2018, arXiv:1804.04235)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..dim import numel
from ..tensors import Weight
from .base import Locals, Optimizer, elements

NAMES = ("adafactor",)


def factors(weight: Weight) -> tuple[int, int]:
    """Bytes of a matrix's row and column of moments, experts by their own: `shape[:-1]` and `shape[:-2] + shape[-1:]`, in fp32."""
    *left, rows, cols = weight.shape
    return 4 * numel(left) * weight.copies * rows, 4 * numel(left) * weight.copies * cols


@dataclass(frozen=True, slots=True, kw_only=True)
class Adafactor(Optimizer):
    """As the Trainer makes it: without a first moment, `scale_parameter` and `relative_step` off. States and step are in fp32."""

    source: str = "transformers 5.23 optimization.py, Adafactor"

    def kept(self, weight: Weight, itemsize: int) -> Sequence[int]:
        return factors(weight) if len(weight.shape) > 1 else [4 * elements(weight)]

    def turn(self, names: Locals, weight: Weight, itemsize: int) -> None:
        """16-bit gradients and weights are copied to fp32; the update is made from the squared gradient, and negated."""
        fp32 = 4 * elements(weight)
        copy = fp32 if itemsize < 4 else 0
        for name in ("grad", "p_data_fp32"):
            names.bind(name, 0)
            names.bind(name, copy)
        names.bind("update", fp32, fp32)
        names.bind("update", fp32, *factors(weight) if len(weight.shape) > 1 else ())
        names.use(fp32)


def optimizer(name: str) -> Optimizer:
    return Adafactor()
