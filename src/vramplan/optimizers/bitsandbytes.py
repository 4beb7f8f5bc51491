"""bitsandbytes' optimizers: states of 32 or 8 bits, and paged ones, in managed memory that torch does not see. Their steps make nothing.

8 bits: a byte per element and an fp32 scale per block of 256; small weights keep fp32. `lion` and `ademamix` are bitsandbytes', as they are
with transformers' Trainer. Source: bitsandbytes 0.50 `optim/optimizer.py` (`init_state`, `get_state_buffer`) and `optim/ademamix.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..tensors import Weight
from .base import Locals, Optimizer, elements

NAMES = (
    "adamw-8bit",
    "adamw-32bit",
    "paged-adamw-8bit",
    "paged-adamw-32bit",
    "lion",
    "lion-8bit",
    "paged-lion",
    "paged-lion-8bit",
    "ademamix",
    "ademamix-8bit",
    "paged-ademamix",
    "paged-ademamix-8bit",
    "rmsprop-8bit",
    "rmsprop-32bit",
)

STATES = {"adamw": 2, "rmsprop": 1, "lion": 1, "ademamix": 3}
"""Buffers like the weight: AdEMAMix keeps two of its three averages in one tensor of twice the size."""
SCALED = 256
"""Elements per scale (`blocksize`)."""
SMALLEST = 4096
"""Weights with fewer elements keep fp32 states (`min_8bit_size`)."""
PAGED = 100_000
"""Buffers of weights with fewer elements are ordinary tensors (`get_state_buffer`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blockwise(Optimizer):
    """`buffers` states per element, of 8 `bits` or fp32. With `wide_embeddings` those of nn.Embedding are fp32, as the Trainer has them.

    Source of that: transformers 5.23 `trainer.py`, create_optimizer (`register_module_override(module, "weight", {"optim_bits": 32})`).
    The two tables of 256 values that all weights share (1 KiB each) are not counted.
    """

    buffers: int
    bits: int
    managed: bool
    wide_embeddings: bool
    source: str = "bitsandbytes 0.50 optim/optimizer.py"

    def kept(self, weight: Weight, itemsize: int) -> Sequence[int]:
        values, scales = self._states(weight)
        return scales if self._goes(weight) else [*values, *scales]

    def paged(self, weight: Weight, itemsize: int) -> int:
        return sum(self._states(weight)[0]) * weight.repeats if self._goes(weight) else 0

    def turn(self, names: Locals, weight: Weight, itemsize: int) -> None:
        pass

    def _states(self, weight: Weight) -> tuple[Sequence[int], Sequence[int]]:
        wide = self.wide_embeddings and weight.kind == "embed"
        return blockwise(elements(weight), self.buffers, 32 if wide else self.bits)

    def _goes(self, weight: Weight) -> bool:
        return self.managed and elements(weight) >= PAGED


def blockwise(count: int, buffers: int, bits: int) -> tuple[Sequence[int], Sequence[int]]:
    """Bytes of `buffers` states of a tensor of `count` elements: of their values, and of their scales."""
    if bits == 32 or count < SMALLEST:
        return [4 * count] * buffers, []
    return [count] * buffers, [4 * -(-count // SCALED)] * buffers


def optimizer(name: str, *, wide_embeddings: bool = False) -> Optimizer:
    kind, _, bits = name.removeprefix("paged-").partition("-")
    return Blockwise(
        buffers=STATES[kind],
        bits=8 if bits == "8bit" else 32,
        managed=name.startswith("paged-"),
        wide_embeddings=wide_embeddings,
    )
