"""HQQ (half-quadratic quantisation): linear layers and experts, a scale and a zero point of 16 bits per group."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import BadInput
from . import Format, Scheme
from .config import ListOfNames, integer, left_out, mapping
from .packed import scales
from .selective import Selective, take_options

if TYPE_CHECKING:
    from .gguf_facts import ModelFacts

NAMES = ("hqq",)
METHODS = ("hqq",)

PACKED = {8: (1, 1), 4: (2, 1), 3: (10, 4), 2: (4, 1), 1: (8, 1)}
"""Bits -> (elements, bytes): 3-bit integers go ten into an int32. Source: hqq `core/bitpack.py`."""


def hqq(bits: int = 4, group: int = 64) -> Format:
    """n·bits/8, and a scale and a zero point of 2 bytes per group: bits + 32/g.

    >>> hqq().nbytes(4096, 4096) * 8 / 4096**2
    4.5

    Source: hqq `core/quantize.py` (`BaseQuantizeConfig`: unquantised scale and zero unless quant_scale, quant_zero).
    """
    if bits not in PACKED:
        raise BadInput(f"hqq {bits}-bit: bits are one of {', '.join(map(str, PACKED))}")
    block, nbytes = PACKED[bits]
    return Format(name=f"hqq {bits}-bit g{group}", block=block, block_bytes=nbytes, extras=(scales(group), scales(group, what="zeros")))


def scheme(name: str, options: list[str], dtype: str, facts: ModelFacts | None) -> Scheme:
    """`hqq`, `hqq-8bit`, `hqq-4bit-g128`: 4 bits in groups of 64 unless said."""
    found = take_options(name, options, bits=4, group=64)
    return Selective(name="-".join((name, *options)), linear=hqq(found["bits"] or 0, found["group"] or 0), dtype=dtype)


def from_config(config: Mapping[str, object], dtype: str) -> Scheme:
    """transformers' HqqConfig: `quant_config.weight_quant_params` and `skip_modules`. Quantised metadata is refused."""
    inner = mapping(config.get("quant_config"), "quant_config") or config
    weights = mapping(inner.get("weight_quant_params"), "weight_quant_params") or inner
    if weights.get("quant_scale") or weights.get("quant_zero"):
        raise BadInput("quantization_config: HQQ with quantised scales or zeros (quant_scale, quant_zero) is not known")
    form = hqq(integer(weights.get("nbits"), "nbits", 4), max(0, integer(weights.get("group_size"), "group_size", 64, least=-1)))
    names = ListOfNames.of(config, "skip_modules")
    return Selective(name="hqq", linear=form, dtype=dtype, rules=left_out(names, "transformers"))
