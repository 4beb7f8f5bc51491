"""Bytes and counts at the edge: parsing what people write and printing what they read.

Inside vramplan every size is an `int` of bytes. GiB (2^30) and GB (10^9) are never confused: a unit is always named, and "24GB" and
"24GiB" parse to different numbers.
"""

from __future__ import annotations

import re

from .errors import BadInput

KiB, MiB, GiB, TiB = 2**10, 2**20, 2**30, 2**40
KB, MB, GB, TB = 10**3, 10**6, 10**9, 10**12

_UNITS = {"B": 1, "KIB": KiB, "MIB": MiB, "GIB": GiB, "TIB": TiB, "KB": KB, "MB": MB, "GB": GB, "TB": TB}
_SIZE = re.compile(r"\s*([0-9]{1,24}(?:\.[0-9]{1,24})?)\s*([A-Za-z]{1,3})\s*")


def parse_size(text: str | int) -> int:
    """Bytes in `text`: an integer of bytes, or a number with its unit (B, KiB, MiB, GiB, TiB, KB, MB, GB, TB).

    >>> parse_size("24GiB"), parse_size("24 GB"), parse_size(512)
    (25769803776, 24000000000, 512)

    Raises BadInput for anything else, a bare number in a string included: "24" could mean GB or GiB.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise BadInput(f"size {text}: must not be negative")
        return text
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None:
        raise BadInput(f"size {str(text)[:60]!r}: write a number with its unit, such as 24GiB (2^30 bytes) or 24GB (10^9 bytes)")
    whole, _, fraction = match[1].partition(".")
    return int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)


def gib(nbytes: int, digits: int = 2) -> str:
    """`nbytes` in GiB, or in MiB or KiB where that reads better.

    >>> gib(8030261248 * 2), gib(57 * MiB), gib(1152), gib(-3 * GiB)
    ('14.96 GiB', '57.0 MiB', '1.1 KiB', '-3.00 GiB')
    """
    size = abs(nbytes)
    if size >= 100 * MiB:
        return f"{nbytes / GiB:,.{digits}f} GiB"
    if size >= MiB // 10:
        return f"{nbytes / MiB:,.1f} MiB"
    return f"{nbytes / KiB:,.1f} KiB" if size >= KiB else f"{nbytes} B"


def count(n: int) -> str:
    """A count of parameters as people say it.

    >>> count(8030261248), count(124439808), count(671026404352), count(999)
    ('8.03 B', '124.4 M', '671.0 B', '999')
    """
    for unit, name in ((TB, "T"), (GB, "B"), (MB, "M"), (KB, "k")):
        if n >= unit:
            value = n / unit
            return f"{value:.2f} {name}" if value < 10 else f"{value:.1f} {name}"
    return str(n)
