"""torch.optim's one-buffer optimizers, all weights at once (foreach, torch's default on a GPU): SGD, with momentum, Adagrad, RMSprop.

Weight decay is 0, as it is by default and with transformers' Trainer; SGD, Adagrad and RMSprop would make a copy of the gradients for it.
Source: pytorch 2.13 `torch/optim/sgd.py`, `adagrad.py`, `rmsprop.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..tensors import Weight
from .base import AtOnce, Locals, Optimizer, elements

NAMES = ("sgd", "sgd-momentum", "adagrad", "rmsprop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffers(AtOnce):
    """`buffers` states like the weight; the step makes `copies` of all weights' size."""

    buffers: int
    copies: int

    def kept(self, weight: Weight, itemsize: int) -> Sequence[int]:
        return [elements(weight) * itemsize] * self.buffers

    def turn(self, names: Locals, weight: Weight, itemsize: int) -> None:
        names.use(*[elements(weight) * itemsize] * self.copies)


def optimizer(name: str) -> Optimizer:
    """SGD's step is in place; RMSprop makes the roots of its averages (`_foreach_sqrt`), Adagrad those and scaled gradients.

    Adagrad's sums are made with it (`__init__`).
    """
    buffers, copies, file = {
        "sgd": (0, 0, "sgd"),
        "sgd-momentum": (1, 0, "sgd"),
        "adagrad": (1, 2, "adagrad"),
        "rmsprop": (1, 1, "rmsprop"),
    }[name]
    source = f"pytorch 2.13 torch/optim/{file}.py"
    return Buffers(buffers=buffers, copies=copies, early=name == "adagrad", source=source)
