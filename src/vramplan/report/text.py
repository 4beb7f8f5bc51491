"""An Estimate for a terminal of 80 columns: the verdict, one bar, the items of the peak, what was assumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from ..units import gib

if TYPE_CHECKING:
    from ..estimate import Estimate
    from ..ledger import Ledger

WIDTH = 80

LOOKS = {
    "weights": ("W", 34),
    "kv cache": ("K", 36),
    "gradients": ("R", 31),
    "optimizer states": ("O", 32),
    "optimizer step": ("P", 32),
    "saved activations": ("V", 36),
    "activations": ("A", 35),
    "compute buffer": ("B", 35),
    "gathered": ("H", 35),
    "attention workspace": ("T", 33),
    "buffers": ("U", 33),
    "workspace": ("S", 33),
    "load": ("D", 33),
    "allocator": ("L", 33),
    "non-torch": ("N", 33),
    "cuda graphs": ("G", 33),
    "cuda context": ("C", 90),
}
"""Of each part, in the order shown: its letter in the bar, and an ANSI colour that reads on light and dark backgrounds."""


def render(answer: Estimate, *, explain: bool = False, colour: bool = False) -> str:
    """The answer as text; `explain` adds every formula with its values and source."""
    moment, peak = answer.peak
    lines = [*wrapped(_verdict(answer), ""), *_remarks(answer), ""]
    tree = _tree(answer.ledger)
    if answer.room:
        lines += [*_bars(answer, colour), ""]
    lines += _items(answer, tree, explain=explain, colour=colour)
    lines += [_row("peak", peak, f"at {moment.value}"), *_allocator(answer), *_host(answer), ""]
    lines += ["Assumed:"]
    for text in (f"model: {answer.model.id}, from {answer.model.origin}", *answer.assumptions):
        lines += wrapped(text, "  - ")
    return "\n".join(lines)


def _verdict(answer: Estimate) -> str:
    peak, headroom = answer.peak[1], answer.headroom
    if answer.gpu is None or answer.room is None or headroom is None:
        return f"{answer.model.id} takes {gib(peak)} (no GPU named: nothing to fit into)."
    verb = "Fits" if answer.fits else "Does not fit"
    rest = f"{gib(headroom)} to spare" if headroom >= 0 else f"{gib(-headroom)} missing"
    if headroom >= 0 and not answer.fits:
        rest += ", but in pieces too small for torch's allocator"
    count = sum(share.count for share in answer.shares)
    where = answer.gpu.name if count == 1 else f"the fullest of {count} × {answer.gpu.name}"
    return f"{verb}: {gib(peak)} of {gib(answer.room)} on {where}, {rest}."


def _bars(answer: Estimate, colour: bool) -> list[str]:
    """One bar for each kind of GPU, the one that breaks first on top."""
    lines = []
    for share in answer.shares:
        if len(answer.shares) > 1:
            last = share.rank + share.count - 1
            who = f"GPU {share.rank}" if share.count == 1 else f"GPUs {share.rank}-{last}"
            lines.append(f"{who}: {gib(share.ledger.peak()[1])} of {gib(share.room or 0)}")
        lines.append(_bar(_tree(share.ledger), share.room or 1, colour))
    return lines


def _host(answer: Estimate) -> list[str]:
    """What lies in host memory, by the first part of its path."""
    parts: dict[str, int] = {}
    for item in answer.host.items:
        parts[item.path[0]] = parts.get(item.path[0], 0) + item.nbytes
    return [_row(f"host memory ({', '.join(parts)})", sum(parts.values()), "")] if parts else []


def _allocator(answer: Estimate) -> list[str]:
    """What torch's allocator makes of it, where its simulation knows the order of allocations."""
    q = answer.quantities
    if answer.reserved is None:
        return []
    return [
        _row("torch: max_memory_allocated", q["peak_allocated"], ""),
        _row("torch: max_memory_reserved", q["peak_reserved"], "by a simulation of its allocator"),
        _row("nvidia-smi", q["process"], "reserved + CUDA context"),
    ]


def _remarks(answer: Estimate) -> list[str]:
    return [line for text in answer.remarks for line in wrapped(text[0].upper() + text[1:] + ".", "")]


def _bar(tree: Mapping[str, int], room: int, colour: bool) -> str:
    """One bar of the GPU's usable memory; where the peak runs past its end, that is marked with `!`."""
    width = WIDTH - 2
    cells: list[str] = []
    total = 0
    for name, nbytes in tree.items():
        total += nbytes
        until = min(round(total * width / room), width)
        cells += [_letter(name, colour)] * (until - len(cells))
    cells += ["·"] * (width - len(cells))
    return "[" + "".join(cells) + ("!" if total > room else "]")


def _letter(name: str, colour: bool) -> str:
    letter, code = LOOKS.get(name, ("#", 0))
    return f"\x1b[{code}m{letter}\x1b[0m" if colour and code else letter


def _tree(ledger: Ledger) -> dict[str, int]:
    """Bytes at the peak by part, in the order of LOOKS."""
    order = list(LOOKS)
    tree = {path[0]: nbytes for path, nbytes in ledger.tree(ledger.peak()[0]).items()}
    return dict(sorted(tree.items(), key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order)))


def _items(answer: Estimate, tree: Mapping[str, int], *, explain: bool, colour: bool) -> list[str]:
    """The items of the peak, by the first two parts of their paths; one second part goes on the line of the first."""
    moment = answer.peak[0]
    lines = []
    for name, nbytes in tree.items():
        items = [i for i in answer.ledger.items if i.path[0] == name and moment in i.alive]
        groups: dict[str, int] = {}
        for item in items:
            if len(item.path) > 1:
                groups[item.path[1]] = groups.get(item.path[1], 0) + item.nbytes
        note = next(iter(groups)) if len(groups) == 1 else ""
        lines.append(_row(f"{_letter(name, colour)} {name}", nbytes, note, bare=len(name) + 2))
        if explain:
            for item in items:
                lines.append(_row(f"    {' / '.join(item.path[1:]) or name}", item.nbytes, ""))
                lines += wrapped(f"= {item.why}", " " * 8) + wrapped(f"source: {item.source}", " " * 8)
        elif len(groups) > 1:
            lines += [_row(f"    {part}", size, "") for part, size in groups.items()]
    return lines


def _row(label: str, nbytes: int, note: str, bare: int | None = None) -> str:
    pad = 46 - (len(label) if bare is None else bare)
    return f"{label}{' ' * max(pad, 1)}{gib(nbytes):>12}  {note}".rstrip()


def wrapped(text: str, lead: str) -> list[str]:
    """`text` in lines of 80 columns, the first after `lead` and the others indented as far."""
    return wrap(text, WIDTH, initial_indent=lead, subsequent_indent=" " * len(lead), break_long_words=False, break_on_hyphens=False)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A plain table: first column to the left, the others to the right."""
    cells = [list(header), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip()

    return "\n".join([line(cells[0]), "  ".join("-" * w for w in widths), *(line(row) for row in cells[1:])])
