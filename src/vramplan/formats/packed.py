"""Integers packed into 32-bit words, with scales and zero points per group: what GPTQ, AWQ and compressed-tensors have in common."""

from __future__ import annotations

from math import gcd

from ..errors import BadInput
from . import Extra


def words(bits: int) -> tuple[int, int]:
    """(elements, bytes) of the shortest run of `bits`-wide integers that fills whole 32-bit words.

    >>> words(4), words(3), words(8)
    ((8, 4), (32, 12), (4, 4))
    """
    if not 1 <= bits <= 8:
        raise BadInput(f"{bits}-bit integers: a width from 1 to 8 is allowed")
    shared = gcd(32, bits)
    return 32 // shared, 4 * bits // shared


def scales(group: int, nbytes: int = 2, what: str = "scales") -> Extra:
    """One scale of `nbytes` per `group` elements of a row; a group of 0 is the whole row."""
    return Extra(what=what, nbytes=nbytes, tile=(1, group))


def zero_points(bits: int, group: int, *, loaded: bool = True) -> Extra:
    """One `bits`-wide zero point per group, packed along the output rows (`qzeros`: int32 [in/g, out·bits/32])."""
    elements, nbytes = words(bits)
    return Extra(what="qzeros", nbytes=nbytes, tile=(elements, group), loaded=loaded)
