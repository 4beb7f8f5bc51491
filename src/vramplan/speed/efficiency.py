"""The share of the roof that is reached, the median of a class of measured rows, and its spread; what an engine takes to start a layer.

A class is phase × engine × kind of GPU × number format. One with fewer than 3 rows gives way to a wider one, which is named in the answer.
`fitted.json` is written by `scripts/fit_speed.py` from `data/measured/speed.jsonl`; nothing is fitted but a median for each class and one
number for each engine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from ..errors import Unknown
from ..formats import weights_nbytes
from .hardware import gpu_class
from .serving import backend
from .work import walked

if TYPE_CHECKING:
    from ..estimate import Estimate

Phase = Literal["decode", "prefill", "training"]
ENGINES_OWN = 6
"""So many of a scenario's classes are its engine's own; the wider ones are for engines without rows, and know of no launches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """The median `value` of `rows` of a class called `name`, their 10th and 90th percentile, and seconds to start a layer."""

    value: float
    spread: tuple[float, float]
    rows: int
    name: str
    launch: float


@cache
def _fitted() -> Mapping[str, Any]:
    with open(os.path.join(os.path.dirname(__file__), "fitted.json"), encoding="utf-8") as file:
        return json.load(file)  # type: ignore[no-any-return]


def efficiency(answer: Estimate, phase: Phase, fitted: Mapping[str, Any] | None = None) -> Efficiency:
    """That of the narrowest class of `answer` that has rows enough. Raises Unknown where no class has."""
    fitted = fitted or _fitted()
    for level, name in enumerate(classes(answer, phase)):
        if name in fitted["classes"]:
            value, low, high, rows = fitted["classes"][name]
            launch = fitted["launch"].get(engine_name(answer), 0.0) if phase == "decode" and level < ENGINES_OWN else 0.0
            return Efficiency(value=value, spread=(low, high), rows=rows, name=name, launch=launch)
    raise Unknown(f"no measurements of {phase} on anything like {answer.gpu.name if answer.gpu else 'it'}")


def engine_name(answer: Estimate) -> str:
    """The engine, and what llama.cpp is built for."""
    return f"llama.cpp/{backend(answer)}" if answer.job.engine == "llama.cpp" else answer.job.engine


def classes(answer: Estimate, phase: Phase) -> tuple[str, ...]:
    """The classes that `answer` belongs to, narrowest first; adapters are never taken for full training, which reaches more."""
    gpu = answer.gpu
    assert gpu is not None
    kind, engine = gpu_class(gpu), engine_name(answer)
    made = gpu.compute_capability or gpu.gfx or gpu.id.split("-")[1]  # of Apple's chips the generation
    form = _trained_in(answer) if phase == "training" else _stored_in(answer)
    span = "one GPU" if sum(share.count for share in answer.shares) == 1 else "several GPUs"
    if phase == "training":
        likes = "full" if form.startswith("full") else "adapters"
        alike: tuple[str, ...] = (likes,)
    else:
        likes, alike = "MoE" if form.endswith("MoE") else "dense", ()
    return tuple(
        " · ".join((phase, *parts))
        for parts in (
            (engine, f"{kind} {made}", form, span),
            (engine, kind, form, span),
            (engine, kind, form),
            (engine, kind, likes),
            (engine, form),
            (engine, *alike),
            (kind, form),
            (kind, *alike),
            alike,
        )
    )


def _stored_in(answer: Estimate) -> str:
    """Bits of the linear layers' weights, in three steps, and whether there are experts."""
    weights = walked(answer.model, 1, 0).weights
    linear = [weight for weight in weights if weight.kind in ("linear", "experts") and weight.tower is None]
    bits = 8 * sum(share.nbytes for share in weights_nbytes(linear, answer.job.scheme)) / max(sum(w.numel for w in linear), 1)
    experts = any(weight.copies > weight.active for weight in linear)
    return f"{'16' if bits > 12 else '8' if bits > 7 else '4'} bits{' MoE' if experts else ''}"


def _trained_in(answer: Estimate) -> str:
    """The training method, and the bits that it computes in."""
    fp8 = (answer.scenario.precision or "").startswith("fp8")
    bits = 8 if fp8 else 8 * (answer.tape.autocast or answer.tape.itemsize)
    experts = any(weight.copies > weight.active for weight in answer.tape.weights)
    return f"{answer.scenario.method} {bits} bits{' MoE' if experts else ''}"
