"""Training frameworks: how each spends memory in a step. One file per framework, found by its `NAMES`, of the same shape as an engine's."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from ...discovery import declared
from ...errors import Unknown
from .. import Engine

__all__ = ["framework", "framework_names"]


def framework_names() -> tuple[str, ...]:
    """The frameworks that are described here, by the name that a scenario uses."""
    return tuple(declared(__file__, "NAMES"))


def framework(name: str) -> Engine:
    """The framework called `name`. Raises Unknown for one that is not described."""
    if name not in framework_names():
        raise Unknown(f"engine {name!r} is not estimated for training by this version; there is {', '.join(framework_names())}")
    return cast(Engine, import_module(f".{declared(__file__, 'NAMES')[name]}", __name__))
