"""bitsandbytes' AdamW: moments in 8 bits with a scale per block of 256, or paged, in managed memory that torch does not see."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..tape import Weight
from . import Itemsize

NAMES = ("adamw-8bit", "paged-adamw-8bit", "paged-adamw-32bit")

BLOCK = 256
"""Elements per scale: bitsandbytes 0.50 `optim/optimizer.py`, `init_state` (blockwise, blocksize 256)."""
SMALLEST = 4096
"""Weights with fewer elements keep fp32 moments: bitsandbytes 0.50 `min_8bit_size`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blockwise:
    """Two moments: one byte each and an fp32 scale per 256 elements; fp32 for small weights and, as transformers' Trainer asks, embeddings.

    Source: bitsandbytes 0.50 `optim/optimizer.py` Optimizer2State.init_state; transformers 5.23 `trainer.py` create_optimizer
    (`register_module_override(module, "weight", {"optim_bits": 32})` for nn.Embedding).
    """

    bits: int
    paged: bool
    source: str = "bitsandbytes 0.50 optim/optimizer.py"

    def states(self, weight: Weight, itemsize: int) -> int:
        one = weight.numel // weight.repeats
        if self.bits == 32 or weight.kind == "embed" or one // weight.copies < SMALLEST:
            return 8 * weight.numel
        return 2 * (one + 4 * -(-one // BLOCK)) * weight.repeats

    def temporary(self, weights: Iterable[Weight], itemsize: Itemsize) -> int:
        return 0


def optimizer(name: str) -> Blockwise:
    return Blockwise(bits=32 if name.endswith("32bit") else 8, paged=name.startswith("paged"))
