"""AdamW whose moments have a dtype of their own (`optimizer_dtype`): torchdistx's AnyPrecisionAdamW, Transformer Engine's FusedAdam.

FusedAdam is Megatron-LM's (`--exp-avg-dtype`, `--exp-avg-sq-dtype`); Apex's and DeepSpeed's take what its fp32 moments take. Kahan
summation is off, as by default. Source: torchdistx `optimizers/anyprecision_optimizer.py`; TransformerEngine at d0067d0
`pytorch/optimizers/fused_adam.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BadInput
from ..tensors import Weight
from .base import BLOCK, AtOnce, Locals, Optimizer, elements

NAMES = ("adamw-anyprecision", "fused-adam")

SIZES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
SCALARS = {"fp32": 0, "bf16": 1, "fp16": 1, "fp8": 4}
"""FusedAdam's tensors of one element beside each moment: a scale, of fp8 the quantiser's scale, amax and inverse too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyPrecision(Optimizer):
    """Weight by weight; fp32 moments unless said otherwise, as transformers has it (5.23 `trainer_optimizer.py`)."""

    dtype: str
    source: str = "pytorch/torchdistx optimizers/anyprecision_optimizer.py"

    def kept(self, weight: Weight, itemsize: int) -> Sequence[int]:
        return [elements(weight) * SIZES[self.dtype]] * 2

    def turn(self, names: Locals, weight: Weight, itemsize: int) -> None:
        """`centered_variance = (exp_avg_sq.sqrt() / denom_correction).add_(eps)`: two tensors for a moment, one held."""
        nbytes = elements(weight) * SIZES[self.dtype]
        names.bind("centered_variance", nbytes, nbytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedAdam(AtOnce):
    """One kernel for fp32 and bf16 moments; for others fp32 copies of both, of all weights together (`get_unscaled_state`)."""

    dtype: str
    source: str = "TransformerEngine at d0067d0 pytorch/optimizers/fused_adam.py"

    def kept(self, weight: Weight, itemsize: int) -> Sequence[int]:
        return [elements(weight) * SIZES[self.dtype], *[BLOCK] * SCALARS[self.dtype]] * 2

    def turn(self, names: Locals, weight: Weight, itemsize: int) -> None:
        if self.dtype not in ("fp32", "bf16"):
            names.use(*[4 * elements(weight)] * 2)


def optimizer(name: str, *, dtype: str = "fp32") -> Optimizer:
    """Raises BadInput for a dtype that it cannot have."""
    allowed = tuple(SIZES) if name == "fused-adam" else ("fp32", "bf16", "fp16")
    if dtype not in allowed:
        raise BadInput(f"optimizer_dtype {dtype!r}: {name} has {', '.join(allowed)}")
    return FusedAdam(dtype=dtype) if name == "fused-adam" else AnyPrecision(dtype=dtype)
