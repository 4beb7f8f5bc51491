"""Engines: how each program that runs a model spends memory. One file per engine, found by its name ("llama.cpp" is llama_cpp.py).

An engine's file gives `ABOUT` (what it covers, and what not), `VERSION` (the newest that it describes) and `account(job)`: the line items,
what the engine may take of the GPU, and which defaults it filled in. It sees tapes and formats, never a family's name.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol, cast

from ..errors import Unknown
from .job import Account, Job

__all__ = ["Account", "Engine", "Job", "engine", "engine_names"]


class Engine(Protocol):
    """What an engine's module offers."""

    NAME: str
    ABOUT: str
    VERSION: str

    def account(self, job: Job) -> Account:
        """The line items of `job` on one GPU. Raises BadInput and Unknown as the engine itself would refuse."""
        ...


def engine_names() -> tuple[str, ...]:
    """The engines that are described here, by the name that a scenario uses."""
    modules = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
    return tuple(module.replace("llama_cpp", "llama.cpp") for module in modules if module not in ("job", "lines"))


def engine(name: str) -> Engine:
    """The engine called `name`. Raises Unknown for one that is not described."""
    if name not in engine_names():
        raise Unknown(f"engine {name!r} is not estimated by this version; for inference there are {', '.join(engine_names())}")
    return cast(Engine, import_module(f".{name.replace('.', '_')}", __name__))
