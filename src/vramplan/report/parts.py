"""The parts of memory as every view shows them: order, letter and colour, the same in a terminal, a notebook and on the page.

A colour never says anything alone: the letter stands beside it. The hues are Paul Tol's "bright" scheme, made for colour-blind eyes
(SRON/EPS/TN/09-002, issue 3.2, figure 1): blue, cyan, green, yellow, red, purple, grey; lighter and darker of a hue for its relatives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..ledger import Ledger, Moment


class Look(NamedTuple):
    """A part's letter, an ANSI colour that reads on light and dark backgrounds, and the colour of an area."""

    letter: str
    ansi: int
    fill: str


PARTS = {
    "weights": Look("W", 34, "#4477AA"),
    "kv cache": Look("K", 36, "#66CCEE"),
    "gradients": Look("R", 31, "#EE6677"),
    "optimizer states": Look("O", 32, "#228833"),
    "optimizer step": Look("P", 32, "#8FCB99"),
    "saved activations": Look("V", 36, "#66CCEE"),
    "activations": Look("A", 35, "#AA3377"),
    "compute buffer": Look("B", 35, "#C0609A"),
    "gathered": Look("H", 35, "#8A5FA8"),
    "attention workspace": Look("T", 33, "#F3ECC2"),
    "buffers": Look("U", 33, "#8C7A1A"),
    "workspace": Look("S", 33, "#E3D98F"),
    "load": Look("D", 33, "#A89A2B"),
    "allocator": Look("L", 33, "#F0E9B8"),
    "non-torch": Look("N", 33, "#CCBB44"),
    "cuda graphs": Look("G", 33, "#8C7A1A"),
    "cuda context": Look("C", 90, "#BBBBBB"),
}
"""Of each part, in the order shown, its look."""

OTHER = Look("#", 0, "#888888")


def look(part: str) -> Look:
    """The look of a part, by the first word of an item's path."""
    return PARTS.get(part, OTHER)


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, from 0 to 1 (WCAG 2.2, definition of relative luminance).

    >>> luminance("#ffffff"), luminance("#000000")
    (1.0, 0.0)
    """
    channels = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def ink(colour: str) -> str:
    """Black or white, whichever is read better on `colour`.

    >>> ink("#4477AA"), ink("#66CCEE")
    ('#ffffff', '#000000')
    """
    behind = luminance(colour)
    return "#ffffff" if 1.05 / (behind + 0.05) > (behind + 0.05) / 0.05 else "#000000"


def by_part(ledger: Ledger, moment: Moment | None = None) -> dict[str, int]:
    """Bytes by part at `moment`, by default that of the peak, in the order of `PARTS`."""
    order = list(PARTS)
    tree = {path[0]: nbytes for path, nbytes in ledger.tree(moment or ledger.peak()[0]).items()}
    return dict(sorted(tree.items(), key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order)))
