"""Optimizers: what each keeps for a trained weight, and what its step takes for a moment. One file per group, found by its `NAMES`.

An optimizer sees weights as the tape notes them, and the bytes of an element of each; no model, engine or GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from inspect import signature

from ..discovery import declared
from ..errors import BadInput, NotFound, Unknown, nearest
from .base import Optimizer

__all__ = ["Optimizer", "named", "optimizer", "optimizer_names"]

ALIASES = {
    "adam": "adamw",
    "adam-8bit": "adamw-8bit",
    "adamw-torch": "adamw",
    "adamw-torch-fused": "adamw-fused",
    "adamw-torch-8bit": "adamw-8bit-torchao",
    "adamw-torch-4bit": "adamw-4bit-torchao",
    "adamw-bnb-8bit": "adamw-8bit",
    "paged-adamw": "paged-adamw-32bit",
    "lion-32bit": "lion",
    "paged-lion-32bit": "paged-lion",
    "paged-ademamix-32bit": "paged-ademamix",
    "rmsprop-bnb": "rmsprop-32bit",
    "rmsprop-bnb-8bit": "rmsprop-8bit",
    "rmsprop-bnb-32bit": "rmsprop-32bit",
    "sophiag": "sophia",
}
"""Other names, `_` written as `-`: transformers' (5.23 `training_args.py`, OptimizerNames) and what people call them."""

UNDESCRIBED = {
    **dict.fromkeys(("apollo-adamw", "apollo-adamw-layerwise", "galore-adafactor", "galore-adafactor-layerwise"), "galore-adamw"),
    **dict.fromkeys(("lomo", "adalomo"), "sgd with optimizer_in_backward"),
    **dict.fromkeys(("schedule-free-adamw", "schedule-free-radam", "stable-adamw", "grokadamw", "adamw-torch-npu-fused"), "adamw"),
    **dict.fromkeys(("schedule-free-sgd", "adamw-torch-xla"), "sgd-momentum"),
}
"""transformers' optimizers that are not described here, and what is nearest."""


def optimizer_names() -> tuple[str, ...]:
    """The optimizers that are described here."""
    return tuple(declared(__file__, "NAMES"))


def named(name: str) -> str:
    """The name here of an optimizer that is called `name`, here or by transformers.

    Raises NotFound with the nearest, and Unknown for one that transformers has and this version does not describe.
    """
    homes = declared(__file__, "NAMES")
    known = name.lower().replace("_", "-")
    known = ALIASES.get(known, known)
    if known in UNDESCRIBED:
        raise Unknown(f"optimizer {name!r} is not described by this version; the nearest that is: {UNDESCRIBED[known]}")
    if known not in homes:
        close = nearest(known[:40], homes) or nearest(known[:40], ALIASES)
        raise NotFound(f"optimizer {name[:40]!r} is not known{close}; known are {', '.join(homes)}")
    return known


def optimizer(name: str, **choices: object) -> Optimizer:
    """The optimizer called `name`. `choices` are those that only some have; None is left to the optimizer.

    `dtype` of the states, `rank` of projections, and `wide_embeddings`: whether 8-bit optimizers keep embeddings' states in fp32. Raises
    what `named` does, and BadInput for a choice that it does not have.
    """
    known, homes = named(name), declared(__file__, "NAMES")
    build: Callable[..., Optimizer] = import_module(f".{homes[known]}", __name__).optimizer
    has = signature(build).parameters
    given = {key: value for key, value in choices.items() if value is not None}
    for key, (field, who) in ASKED.items():
        if key in given and key not in has:
            raise BadInput(f"{field} {given[key]!r}: optimizer {name!r} has no such choice; {who}")
    return build(known, **{key: value for key, value in given.items() if key in has})


ASKED = {
    "dtype": ("optimizer_dtype", "adamw-anyprecision and fused-adam have; torch's keep states in the weight's dtype, -8bit in 8 bits"),
    "rank": ("optimizer_rank", "galore-adamw and its variants have"),
}
"""Choices that a user asks for by name: the scenario's key, and who has it. The others are a framework's and go unheard where they mean
nothing."""
