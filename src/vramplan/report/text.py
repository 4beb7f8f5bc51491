"""An Estimate for a terminal: the verdict first, then one bar, the items of the peak, what was assumed. 80 columns, with or without colour."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from ..units import gib

if TYPE_CHECKING:
    from ..estimate import Estimate

WIDTH = 80

COLOURS = {
    "weights": 34,
    "kv cache": 36,
    "activations": 35,
    "compute buffer": 35,
    "workspace": 33,
    "non-torch": 33,
    "cuda graphs": 33,
    "cuda context": 90,
}
"""ANSI colours that read on light and dark backgrounds; the letters in the bar say the same without colour."""
LETTERS = {
    "weights": "W",
    "kv cache": "K",
    "activations": "A",
    "compute buffer": "B",
    "workspace": "S",
    "non-torch": "N",
    "cuda graphs": "G",
    "cuda context": "C",
}


def render(answer: Estimate, *, explain: bool = False, colour: bool = False) -> str:
    """The answer as text; `explain` adds every formula with its values and source."""
    moment, peak = answer.peak
    lines = [_verdict(answer), *_remarks(answer), ""]
    tree = answer.ledger.tree(moment)
    if answer.room:
        lines += [_bar(tree, answer.room, colour), ""]
    lines += _items(answer, explain=explain, colour=colour)
    lines += [_row("peak", peak, f"at {moment.value}"), ""]
    lines += ["Assumed:"]
    for text in (f"model: {answer.model.id}, from {answer.model.origin}", *answer.assumptions):
        lines += _wrapped(text, "  - ")
    return "\n".join(lines)


def _verdict(answer: Estimate) -> str:
    peak, headroom = answer.peak[1], answer.headroom
    if answer.gpu is None or answer.room is None or headroom is None:
        return f"{answer.model.id} takes {gib(peak)} (no GPU named: nothing to fit into)."
    verb = "Fits" if headroom >= 0 else "Does not fit"
    rest = f"{gib(headroom)} to spare" if headroom >= 0 else f"{gib(-headroom)} missing"
    return f"{verb}: {gib(peak)} of {gib(answer.room)} on {answer.gpu.name}, {rest}."


def _remarks(answer: Estimate) -> list[str]:
    return [line for text in answer.remarks for line in _wrapped(text[0].upper() + text[1:] + ".", "")]


def _bar(tree: dict[tuple[str, ...], int], room: int, colour: bool) -> str:
    """One bar of the GPU's usable memory; what does not fit runs past its end, marked with `!`."""
    width = WIDTH - 2
    cells: list[str] = []
    total = 0
    for path, nbytes in tree.items():
        total += nbytes
        until = min(round(total * width / room), width)
        name = path[0]
        cells += [_paint(LETTERS.get(name, "#"), COLOURS.get(name, 0), colour)] * (until - len(cells))
    cells += ["·"] * (width - len(cells))
    return "[" + "".join(cells) + ("!" if total > room else "]")


def _paint(text: str, code: int, colour: bool) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if colour and code else text


def _items(answer: Estimate, *, explain: bool, colour: bool) -> list[str]:
    """The items of the peak, by the first two parts of their paths; a part with one line of its own is not repeated."""
    moment = answer.peak[0]
    lines = []
    for (name,), nbytes in answer.ledger.tree(moment).items():
        items = [i for i in answer.ledger.items if i.path[0] == name and moment in i.alive]
        lines.append(_row(f"{_paint(LETTERS.get(name, '#'), COLOURS.get(name, 0), colour)} {name}", nbytes, "", bare=len(name) + 2))
        groups: dict[str, list[int]] = {}
        for item in items:
            if len(item.path) > 1:
                groups.setdefault(item.path[1], []).append(item.nbytes)
        if explain:
            for item in items:
                lines.append(_row(f"    {' / '.join(item.path[1:]) or name}", item.nbytes, ""))
                lines += _wrapped(f"= {item.why}", " " * 8) + _wrapped(f"source: {item.source}", " " * 8)
        elif groups:
            lines += [_row(f"    {part}", sum(sizes), "") for part, sizes in groups.items()]
    return lines


def _row(label: str, nbytes: int, note: str, bare: int | None = None) -> str:
    pad = 46 - (len(label) if bare is None else bare)
    return f"{label}{' ' * max(pad, 1)}{gib(nbytes):>12}  {note}".rstrip()


def _wrapped(text: str, lead: str) -> list[str]:
    return wrap(text, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead), break_long_words=False, break_on_hyphens=False)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plain table: first column to the left, the others to the right."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip()

    return "\n".join([line(cells[0]), "  ".join("-" * w for w in widths), *(line(row) for row in cells[1:])])
