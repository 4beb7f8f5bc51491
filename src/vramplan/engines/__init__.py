"""Engines: how each program that runs a model spends memory. One file per engine, found by its `NAMES`.

An engine's file gives `ABOUT` (what it covers, and what not), `VERSION` (the newest that it describes) and `account(job)`: the line items,
what the engine may take of the GPU, and which defaults it filled in; `UNEQUAL` where GPUs may be of several kinds. It sees tapes and
formats, never a family's name.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from ..discovery import declared
from ..errors import Unknown
from .job import Account, Job

__all__ = ["Account", "Engine", "Job", "engine", "engine_names"]


class Engine(Protocol):
    """What an engine's module offers."""

    NAMES: tuple[str, ...]
    ABOUT: str
    VERSION: str

    def account(self, job: Job) -> Account:
        """The line items of `job` on one GPU. Raises BadInput and Unknown as the engine itself would refuse."""
        ...


def engine_names() -> tuple[str, ...]:
    """The engines that are described here, by the name that a scenario uses."""
    return tuple(declared(__file__, "NAMES"))


def engine(name: str) -> Engine:
    """The engine called `name`. Raises Unknown for one that is not described."""
    if name not in engine_names():
        raise Unknown(f"engine {name!r} is not estimated by this version; for inference there are {', '.join(engine_names())}")
    return cast(Engine, import_module(f".{declared(__file__, 'NAMES')[name]}", __name__))
