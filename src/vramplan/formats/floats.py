"""Plain floating-point weights: everything in one type."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Scheme
from .selective import Selective, no_options

if TYPE_CHECKING:
    from .gguf_facts import ModelFacts

NAMES = ("bf16", "fp16", "fp32")


def scheme(name: str, options: list[str], dtype: str, facts: ModelFacts | None) -> Scheme:
    """All weights in one float type, but those whose own dtype the model states (fp32 routing biases and the like)."""
    no_options(name, options)
    return Selective(name=name, linear=None, dtype=name)
