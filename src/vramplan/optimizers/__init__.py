"""Optimizers: what each keeps for a trained weight, and what its step takes for a moment. One file per group, found by its `NAMES`.

An optimizer sees weights as the tape notes them, and the bytes of an element of each; no model, engine or GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Protocol

from ..discovery import declared
from ..errors import NotFound, nearest
from ..tape import Weight

__all__ = ["Optimizer", "optimizer", "optimizer_names"]

Itemsize = Callable[[Weight], int]


class Optimizer(Protocol):
    """What an optimizer takes beside weights and gradients, in bytes."""

    @property
    def source(self) -> str:
        """Whose code, at which version."""

    @property
    def paged(self) -> bool:
        """Whether its states are in managed memory, which torch's allocator does not see and the driver moves to the host."""

    def states(self, weight: Weight, itemsize: int) -> int:
        """Bytes that it keeps for `weight` in all its layers and experts."""

    def temporary(self, weights: Iterable[Weight], itemsize: Itemsize) -> int:
        """Most bytes that its step makes and frees, over all trained weights."""


def optimizer_names() -> tuple[str, ...]:
    """The optimizers that are described here."""
    return tuple(declared(__file__, "NAMES"))


def optimizer(name: str) -> Optimizer:
    """The optimizer called `name`. Raises NotFound with the nearest."""
    homes = declared(__file__, "NAMES")
    if name not in homes:
        raise NotFound(f"optimizer {name[:40]!r} is not known{nearest(name[:40], homes)}; known are {', '.join(homes)}")
    build: Callable[[str], Optimizer] = import_module(f".{homes[name]}", __name__).optimizer
    return build(name)
