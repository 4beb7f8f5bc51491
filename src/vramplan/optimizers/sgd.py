"""torch.optim.SGD: nothing, or with momentum one buffer like the weight; its step is in place (pytorch 2.13 `torch/optim/sgd.py`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..tape import Weight
from . import Itemsize

NAMES = ("sgd", "sgd-momentum", "lion")


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffers:
    """`copies` buffers like the weight, and `temporaries` of the largest weight during the step."""

    copies: int
    temporaries: int
    source: str
    paged: bool = False

    def states(self, weight: Weight, itemsize: int) -> int:
        return self.copies * itemsize * weight.numel

    def temporary(self, weights: Iterable[Weight], itemsize: Itemsize) -> int:
        return self.temporaries * max((weight.numel // weight.repeats * itemsize(weight) for weight in weights), default=0)


def optimizer(name: str) -> Buffers:
    """Lion keeps one momentum and makes its update for one weight at a time (Chen et al. 2023, arXiv:2302.06675, algorithm 2)."""
    if name == "lion":
        return Buffers(copies=1, temporaries=2, source="arXiv:2302.06675, algorithm 2")
    return Buffers(copies=int(name == "sgd-momentum"), temporaries=0, source="pytorch 2.13 torch/optim/sgd.py")
