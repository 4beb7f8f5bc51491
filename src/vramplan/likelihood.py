"""How likely an estimate fits: by the signed errors that estimates of its kind were measured to have.

A kind is a task, an engine, and whether there is one GPU or several. `likelihood.json` has, for each, the number of measured rows and the
quantiles of estimate / measurement − 1 (`scripts/likelihood.py` makes it of `data/measured/`). What it does not know: how the errors of
several rows of one source hang together, and what else runs on the GPU.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

LEANS = 10
"""A kind leans on its task's rows as if so many of them were its own: few measurements say little."""


@cache
def kinds() -> Mapping[str, Mapping[str, Any]]:
    """Kind -> `n` and `errors`, the latter as quantiles at equal steps from the least to the largest."""
    with open(os.path.join(os.path.dirname(__file__), "likelihood.json"), encoding="utf-8") as file:
        return json.load(file)["kinds"]  # type: ignore[no-any-return]


def likelihood(need: int, room: int, *, task: str, engine: str, several: bool) -> float:
    """The chance, from 0 to 1, that what is estimated to take `need` bytes takes `room` at most: its error is not below need / room − 1.

    By Laplace's rule of succession, (k + 1) / (n + 2), so that no number of measurements makes it certain.
    """
    gpus = "several" if several else "one"
    whole = kinds()[f"{task} {gpus}"]
    own = kinds().get(f"{task} {engine} {gpus}", {"n": 0, "errors": (0.0, 0.0)})
    least = need / room - 1 if room > 0 else 1.0
    return float(round((own["n"] * _held(own, least) + LEANS * _held(whole, least)) / (own["n"] + LEANS), 3))


def _held(kind: Mapping[str, Any], least: float) -> float:
    """The share of a kind's errors that are not below `least`, by the rule of succession."""
    return float((kind["n"] * (1 - _below(kind["errors"], least)) + 1) / (kind["n"] + 2))


def _below(errors: Sequence[float], value: float) -> float:
    """The share of a distribution below `value`, from its quantiles at equal steps, straight between them."""
    at = bisect_right(errors, value) - 1
    if at < 0 or at >= len(errors) - 1:
        return 0.0 if at < 0 else 1.0
    low, high = errors[at], errors[at + 1]
    return (at + (value - low) / (high - low)) / (len(errors) - 1)
