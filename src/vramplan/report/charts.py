"""Charts as SVG text, made of an answer's own numbers: the bar, the moments of a run, the frontier. For notebooks and the page.

Widths are per cent and heights pixels, so that a chart fills what it stands in and its letters keep their size. No style sheet is needed;
lines and letters take the colour of the text around them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from ..ledger import Ledger, Moment
from ..units import gib
from .parts import by_part, ink, look

BAR, FRAME = 34, 'fill="none" stroke="currentColor" stroke-opacity=".45"'
LETTER = 2.6
"""Per cent of the width that a letter needs."""


def swatch(part: str) -> str:
    """A part's letter on its colour, as the legend shows it."""
    letter, _, fill = look(part)
    return (
        '<svg class="swatch" width="18" height="18" aria-hidden="true"><rect width="18" height="18" rx="3" '
        f'fill="{fill}"/><text x="9" y="13" text-anchor="middle" font-size="11" fill="{ink(fill)}">{letter}</text></svg>'
    )


def bar(parts: Mapping[str, int], room: int | None) -> str:
    """One bar of `parts`, with a line where the usable memory ends; without `room` the bar is all that is needed."""
    total = sum(parts.values())
    whole = max(total, room or 0) or 1
    pieces, at = [], 0.0
    for part, nbytes in parts.items():
        width = 100 * nbytes / whole
        pieces.append(_piece(part, nbytes, at, width))
        at += width
    end = 100 * room / whole if room else 100.0
    pieces.append(f'<rect x="0" y="4" width="{end:.3f}%" height="{BAR}" rx="3" {FRAME}/>')
    if room and total > room:
        pieces.append(
            f'<line x1="{end:.3f}%" x2="{end:.3f}%" y1="0" y2="{BAR + 8}" stroke="currentColor" stroke-width="3" stroke-dasharray="5 3"/>'
        )
    label = "; ".join(f"{part} {gib(nbytes)}" for part, nbytes in parts.items())
    limit = f" of {gib(room)} usable" if room else ""
    return _svg(BAR + 8, f"{gib(total)}{limit}: {label}", "".join(pieces))


def _piece(part: str, nbytes: int, at: float, width: float) -> str:
    letter, _, fill = look(part)
    middle = at + width / 2
    text = (
        f'<text x="{middle:.3f}%" y="{BAR // 2 + 9}" text-anchor="middle" font-size="13" fill="{ink(fill)}">{letter}</text>'
        if width >= LETTER
        else ""
    )
    title = f"<title>{escape(part)}: {gib(nbytes)}</title>"
    return (
        f'<g>{title}<rect x="{at:.3f}%" y="4" width="{width:.3f}%" height="{BAR}" fill="{fill}" '
        f'stroke="currentColor" stroke-opacity=".35" stroke-width=".5"/>{text}</g>'
    )


def moments(ledger: Ledger, room: int | None, height: int = 190) -> str:
    """A column for each moment of a run, made of its parts, and a line where the usable memory ends."""
    seen = frozenset().union(*(item.alive for item in ledger.items))
    shown = [moment for moment in Moment if moment in seen]
    top, floor = 22, height - 22
    most = max([ledger.at(moment) for moment in shown] + [room or 0]) or 1
    scale, step = (floor - top) / most, 100 / len(shown)
    pieces = []
    for number, moment in enumerate(shown):
        y, x = float(floor), number * step + step * 0.14
        for part, nbytes in by_part(ledger, moment).items():
            y -= nbytes * scale
            pieces.append(_brick(part, nbytes, (x, y), (step * 0.72, nbytes * scale)))
        middle = number * step + step / 2
        pieces.append(_text(middle, y - 5, gib(ledger.at(moment), 1)) + _text(middle, floor + 16, moment.value))
    if room:
        y = floor - room * scale
        pieces.append(f'<line x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-width="1.5" stroke-dasharray="5 4"/>')
    pieces.append(f'<line x1="0" x2="100%" y1="{floor}" y2="{floor}" stroke="currentColor" stroke-opacity=".5"/>')
    label = "; ".join(f"{moment.value} {gib(ledger.at(moment))}" for moment in shown)
    return _svg(height, f"Memory by moment: {label}" + (f"; the line is at {gib(room)} usable" if room else ""), "".join(pieces))


def _brick(part: str, nbytes: int, at: tuple[float, float], size: tuple[float, float]) -> str:
    (x, y), (width, height), (letter, _, fill) = at, size, look(part)
    text = _text(x + width / 2, y + height / 2 + 4, letter, ink(fill)) if height >= 14 else ""
    return (
        f'<g><title>{escape(part)}: {gib(nbytes)}</title><rect x="{x:.3f}%" y="{y:.2f}" width="{width:.3f}%" height="{height:.2f}" '
        f'fill="{fill}" stroke="currentColor" stroke-opacity=".35" stroke-width=".5"/>{text}</g>'
    )


def frontier(points: Sequence[tuple[int, int]], here: tuple[int, int] | None, axes: tuple[str, str], height: int = 190) -> str:
    """A column for each length (first of a point), as high as the largest batch that fits (second), each doubling one step.

    `here` is where the scenario stands, marked in the column of the least length that holds it; `axes` names both.
    """
    from math import log2

    top, floor, step = 22, height - 38, 100 / len(points)
    tallest = log2(max([batch for _, batch in points] + [here[1] if here else 1]) + 1)
    fill = look("weights").fill
    pieces = []
    for number, (length, batch) in enumerate(points):
        x, y = number * step, floor - (floor - top) * log2(batch + 1) / tallest
        pieces.append(f'<rect x="{x + step * 0.14:.3f}%" y="{y:.1f}" width="{step * 0.72:.3f}%" height="{floor - y:.1f}" fill="{fill}"/>')
        pieces.append(_text(x + step / 2, y - 5, f"{batch:,}") + _text(x + step / 2, floor + 15, _short(length)))
    column = next((number for number, (length, _) in enumerate(points) if here and length >= here[0]), None)
    if here and column is not None:
        y, x = floor - (floor - top) * log2(here[1] + 1) / tallest, column * step
        pieces.append(_line(x + step * 0.05, x + step * 0.95, y, "3"))
    pieces.append(_line(0, 100, floor, "1") + _text(50, height - 3, f"{axes[0]} (across), {axes[1]} (up, doubling)"))
    label = "; ".join(f"{length:,} {axes[0]}: {batch:,} {axes[1]}" for length, batch in points)
    return _svg(height, f"What fits. {label}", "".join(pieces))


def _line(x: float, until: float, y: float, width: str) -> str:
    return f'<line x1="{x:.3f}%" x2="{until:.3f}%" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" stroke-width="{width}"/>'


def _short(number: int) -> str:
    return f"{number // 1024}k" if number >= 1024 and number % 1024 == 0 else f"{number:,}"


def _text(x: float, y: float, text: str, fill: str = "currentColor") -> str:
    return f'<text x="{x:.3f}%" y="{y:.1f}" text-anchor="middle" font-size="11" fill="{fill}">{escape(text)}</text>'


def _svg(height: int, label: str, inside: str) -> str:
    return f'<svg class="chart" role="img" width="100%" height="{height}" aria-label="{escape(label)}">{inside}</svg>'
