"""What can go wrong, as one small tree. Every message says what was given, what is allowed and, where there is one, the nearest match.

VramplanError
├── BadInput        the user's input is wrong: exit status 2
│   ├── BadFile     a file or header is damaged, hostile or not what it claims to be
│   └── NotFound    no such model, GPU, format or engine here
├── Unknown         the input is fine, but we cannot estimate it and do not guess: exit status 2
└── Unreachable     a network or hub did not answer: exit status 2
"""

from __future__ import annotations

from collections.abc import Iterable


class VramplanError(Exception):
    """Root of everything that vramplan raises on purpose; its text is one line, fit for a user."""


class BadInput(VramplanError):
    """The input is wrong; the message names the value, what is allowed and the nearest match."""


class BadFile(BadInput):
    """A file is damaged, hostile or not of the kind it claims to be."""


class NotFound(BadInput):
    """A name that is in none of our catalogues, with the nearest names."""


class Unknown(VramplanError):
    """Something that the estimate does not know; refused rather than guessed."""


class Unreachable(VramplanError):
    """A hub or network that gave no usable answer."""


def nearest(given: str, allowed: Iterable[str], n: int = 3) -> str:
    """`"; did you mean 'a' or 'b'?"` for the names closest to `given`, or an empty string.

    >>> nearest("rtx4090", ["rtx-4090", "rtx-3060", "h100"])
    "; did you mean 'rtx-4090' or 'rtx-3060'?"
    """
    from difflib import get_close_matches

    names = {name.lower(): name for name in allowed}
    matches = get_close_matches(given.lower(), names, n=n, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(names[m]) for m in matches)}?" if matches else ""
