"""The OCP microscaling formats: elements of 4 or 8 bits in blocks of 32 that share one power-of-two scale (E8M0, one byte)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from . import Extra, Format, Scheme
from .config import ListOfNames, left_out
from .selective import Selective, no_options

if TYPE_CHECKING:
    from .gguf_facts import ModelFacts

NAMES = ("mxfp4", "mxfp8")
METHODS = ("mxfp4",)

_SCALE = (Extra(what="scales", nbytes=1, tile=(1, 32)),)

MXFP4 = Format(name="mxfp4", block=2, block_bytes=1, extras=_SCALE)
"""4.25 bits. Source: OCP Microscaling Formats (MX) v1.0, table 1; gpt-oss checkpoints' `_blocks` and `_scales`."""
MXFP8 = Format(name="mxfp8", block=1, block_bytes=1, extras=_SCALE)
"""8.25 bits. Source: OCP Microscaling Formats (MX) v1.0, table 1."""


def scheme(name: str, options: list[str], dtype: str, facts: ModelFacts | None) -> Scheme:
    """`mxfp4` (only the experts where a model has any, as gpt-oss; `facts` says so) and `mxfp8` (linear layers and experts)."""
    no_options(name, options)
    if name == "mxfp8":
        return Selective(name=name, linear=MXFP8, dtype=dtype)
    only_experts = facts is not None and facts.experts > 1
    return Selective(name=name, linear=None if only_experts else MXFP4, experts=MXFP4, dtype=dtype)


def from_config(config: Mapping[str, object], dtype: str) -> Scheme:
    """gpt-oss: transformers replaces the experts' matrices alone (`integrations/mxfp4.py`); biases stay."""
    names = ListOfNames.of(config, "modules_to_not_convert")
    return Selective(name="mxfp4", linear=None, experts=MXFP4, dtype=dtype, rules=left_out(names, "transformers"), note=names.note)
