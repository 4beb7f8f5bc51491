"""AQLM: additive quantisation, groups of weights as sums of entries of learned codebooks."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import Unknown
from . import Extra, Format, Scheme
from .config import ListOfNames, integer, left_out
from .selective import Selective

METHODS = ("aqlm",)


def aqlm(codebooks: int = 1, bits: int = 16, group: int = 8) -> Format:
    """`codebooks` codes of `bits` bits per `group` weights, fp16 codebooks of 2^bits × group entries, an fp16 scale per output row.

    >>> aqlm().nbytes(4096, 4096) - 4096 * 4096 // 4 == 2**20 + 2 * 4096
    True

    Source: Egiazarian et al., arXiv 2401.06118, section 3; aqlm `inference.py` (codes, codebooks, scales).
    """
    if bits not in (8, 16):
        raise Unknown(f"AQLM with codes of {bits} bits is not known; known are 8 and 16")
    extras = (
        Extra(what="codebooks", nbytes=codebooks * 2**bits * group * 2),
        Extra(what="scales", nbytes=2, tile=(1, 0)),
    )
    return Format(name=f"aqlm {codebooks}x{bits} g{group}", block=group, block_bytes=codebooks * bits // 8, extras=extras)


def from_config(config: Mapping[str, object], dtype: str) -> Scheme:
    """transformers' AqlmConfig; `linear_weights_not_to_quantize` names weights, not modules."""
    form = aqlm(
        integer(config.get("num_codebooks"), "num_codebooks", 1),
        integer(config.get("nbits_per_codebook"), "nbits_per_codebook", 16),
        integer(config.get("in_group_size"), "in_group_size", 8),
    )
    names = ListOfNames.of(config, "linear_weights_not_to_quantize")
    modules = ListOfNames(entries=tuple(entry.removesuffix(".weight") for entry in names.entries), given=names.given)
    return Selective(name="aqlm", linear=form, dtype=dtype, rules=left_out(modules, "transformers"))
