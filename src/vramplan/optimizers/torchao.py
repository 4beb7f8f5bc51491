"""torchao's low-bit AdamW: moments in 8 bits, 4 bits or FP8, an fp32 scale per block, and for 8 and 4 bits a table of their values.

Small weights, and those that are no whole number of blocks, keep moments like the weight. The step is compiled, weight by weight; what its
kernels hand on to each other was read from the Triton code that Inductor of pytorch 2.13 makes of `single_param_adam`, and not judged by a
GPU. Source: torchao 0.18 `optim/adam.py` (`_new_buffer`), `subclass_8bit.py`, `subclass_4bit.py`, `subclass_fp8.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..tensors import Weight
from .base import BLOCK, Locals, Optimizer, elements

NAMES = ("adamw-8bit-torchao", "adamw-4bit-torchao", "adamw-fp8-torchao")

SMALLEST = 4096
"""Weights with fewer elements are not quantised (`_new_buffer`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LowBit(Optimizer):
    """`per_byte` elements in a byte, a scale per `block` of them, a `table` for each state; `between` bytes per element during the step.

    Between: of 8 bits, the scaled moments in fp32; of 4 bits, their codes in int64 too, before they are packed; of FP8, scales only.
    """

    per_byte: int
    block: int
    table: int
    between: Sequence[int]
    source: str = "torchao 0.18 optim/adam.py"

    def kept(self, weight: Weight, itemsize: int) -> Sequence[int]:
        count = elements(weight)
        if not self._quantised(count):
            return [count * itemsize] * 2
        table = [self.table] if self.table else []
        return [count // self.per_byte, 4 * count // self.block, *table] * 2

    def turn(self, names: Locals, weight: Weight, itemsize: int) -> None:
        count = elements(weight)
        if self._quantised(count):
            names.use(*[4 * count // self.block] * 2, *[count * size for size in self.between])

    def _quantised(self, count: int) -> bool:
        return count >= SMALLEST and count % self.block == 0


def optimizer(name: str) -> Optimizer:
    """A table has 256 fp32 values, or 16: a block of torch's allocator."""
    if "4bit" in name:
        return LowBit(per_byte=2, block=128, table=BLOCK, between=(4, 4, 8, 8))
    if "8bit" in name:
        return LowBit(per_byte=1, block=256, table=256 * 4, between=(4, 4))
    return LowBit(per_byte=1, block=256, table=0, between=())
