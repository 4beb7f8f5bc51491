"""ExLlama's EXL2 and EXL3: an average of bits per weight over linear layers and experts, the head in its own; embeddings stay 16-bit.

Not known: which layer got how many bits (the quantiser measures that): a file's header says it. ExLlama keeps the embedding in system
memory by default; that is the engine's choice and not counted here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

from ..errors import BadInput
from . import Extra, Format, Scheme
from .selective import Selective

if TYPE_CHECKING:
    from .gguf_facts import ModelFacts

NAMES = ("exl2", "exl3")
METHODS = ("exl2", "exl3")

HEAD_BITS = Fraction(6)
"""Default `head_bits` of both quantisers (exllamav2 `convert_exl2.py`, exllamav3 `convert.py`)."""
CODEBOOKS = ("mul1", "mcg")
"""EXL3's codebooks that a matrix names by an int32 beside it; `3inst` needs none (exllamav3 1.4.1 `modules/quant/exl3.py`)."""
_BPW = re.compile(r"\d(?:\.\d{1,4})?")


def average(kind: str, bpw: Fraction, codebook: str = CODEBOOKS[0]) -> Format:
    """n·bpw/8 bytes: EXL2's figure includes its scales and permutations; EXL3 adds fp16 sign vectors, 2 bytes per row and per column.

    >>> average("exl3", Fraction(4)).nbytes(4096, 4096) - 4096 * 4096 // 2
    16388

    Source: exllamav2 `conversion/qparams.py` (bpw counts the groups' scales); exllamav3 `doc/exl3.md` (trellis of int16, `suh`, `svh`), and
    `convert.py` 1.4.1, whose codebook is mul1 unless asked for.
    """
    if not 1 <= bpw <= 8:
        raise BadInput(f"{kind} with {float(bpw):g} bits per weight: from 1 to 8 are allowed")
    size = bpw / 8
    signs = (Extra(what="svh", nbytes=2, tile=(1, 0)), Extra(what="suh", nbytes=2, tile=(0, 1)))
    named = (Extra(what=codebook, nbytes=4),) if codebook in CODEBOOKS else ()
    extras = (*signs, *named) if kind == "exl3" else ()
    return Format(name=f"{kind} {float(bpw):g} bpw", block=size.denominator, block_bytes=size.numerator, extras=extras)


def scheme(name: str, options: list[str], dtype: str, facts: ModelFacts | None) -> Scheme:
    """`exl2-4.0bpw`, `exl3-3.5bpw-h8` (the head in 8 bits; 6 unless said)."""
    bpw, head = None, HEAD_BITS
    for option in options:
        if option.endswith("bpw") and _BPW.fullmatch(option[:-3]):
            bpw = Fraction(option[:-3])
        elif re.fullmatch(r"h\d", option):
            head = Fraction(option[1:])
        else:
            raise BadInput(f"weights {name!r} has no option {option[:30]!r}; write {name}-4.0bpw or {name}-4.0bpw-h8")
    if bpw is None:
        raise BadInput(f"weights {name!r}: say how many bits per weight, such as {name}-4.0bpw")
    return Selective(name="-".join((name, *options)), linear=average(name, bpw), dtype=dtype, head=average(name, head))


def from_config(config: Mapping[str, object], dtype: str) -> Scheme:
    """`bits` and `head_bits` of ExLlama's own config."""
    kind = str(config.get("quant_method")).lower()
    codebook = str(config.get("codebook", "3inst"))
    form = average(kind, _bits(config, "bits", None), codebook)
    return Selective(name=kind, linear=form, dtype=dtype, head=average(kind, _bits(config, "head_bits", HEAD_BITS), codebook))


def _bits(config: Mapping[str, object], key: str, default: Fraction | None) -> Fraction:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float, Fraction)) or not 1 <= value <= 16:
        raise BadInput(f"quantization_config: {key!r} is {str(value)[:40]!r}; it must be a number of bits")
    return min(Fraction(value).limit_denominator(10_000), Fraction(8))
