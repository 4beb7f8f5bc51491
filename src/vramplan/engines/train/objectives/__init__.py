"""Objectives beyond plain training, as TRL's trainers run them on transformers: one file each, found by its `NAMES`.

The trainers pad a batch to its longest sequence; all are taken as that long. Not known: padding masks, images, tools, TRL
before 1.16 (which made all logits), Liger's kernels.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from ....discovery import declared
from ....errors import Unknown, nearest
from .base import Objective

__all__ = ["TRL", "Objective", "objective", "objective_names"]

TRL = "1.16"
"""The version that is described."""


def objective_names() -> tuple[str, ...]:
    """The objectives that are described here, by the name that a scenario uses; plain training is none of them."""
    return tuple(declared(__file__, "NAMES"))


def objective(name: str) -> Objective:
    """The objective called `name`. Raises Unknown for one that is not described."""
    names = objective_names()
    if name not in names:
        raise Unknown(f"objective {name!r} is not estimated by this version; there is sft, {', '.join(names)}{nearest(name, names)}")
    return cast(Objective, import_module(f".{declared(__file__, 'NAMES')[name]}", __name__).OBJECTIVE)
