"""torch.optim.AdamW: two moments in the weight's dtype. `adamw` steps all weights at once (foreach, torch's default on a GPU).

`adamw-fused` steps in one kernel, `adamw-forloop` weight by weight. Adam is the same. Source: pytorch 2.13 `torch/optim/adam.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..tensors import Weight
from .base import BLOCK, AtOnce, Locals, Optimizer, elements

NAMES = ("adamw", "adamw-fused", "adamw-forloop")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW(Optimizer):
    """`exp_avg` and `exp_avg_sq`, each like the weight (`_init_group`); their step counter is in host memory."""

    source: str = "pytorch 2.13 torch/optim/adam.py"

    def kept(self, weight: Weight, itemsize: int) -> Sequence[int]:
        return [elements(weight) * itemsize] * 2

    def turn(self, names: Locals, weight: Weight, itemsize: int) -> None:
        """`_single_tensor_adam`: `denom = (exp_avg_sq.sqrt() / bias_correction2_sqrt).add_(eps)`, two tensors for a moment, one held."""
        nbytes = elements(weight) * itemsize
        names.bind("denom", nbytes, nbytes)


class Foreach(AtOnce, AdamW):
    """One more copy of the second moments (`_foreach_sqrt`), of all weights together."""

    __slots__ = ()

    def turn(self, names: Locals, weight: Weight, itemsize: int) -> None:
        names.use(elements(weight) * itemsize)


class Fused(AdamW):
    """Nothing beside the states, but their step counter is on the GPU: a block for each tensor (`_init_group`)."""

    __slots__ = ()

    def kept(self, weight: Weight, itemsize: int) -> Sequence[int]:
        return [BLOCK, *[elements(weight) * itemsize] * 2]

    def turn(self, names: Locals, weight: Weight, itemsize: int) -> None:
        pass


def optimizer(name: str) -> Optimizer:
    return {"adamw": Foreach, "adamw-fused": Fused, "adamw-forloop": AdamW}[name]()
