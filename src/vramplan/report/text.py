"""An Estimate for a terminal of 80 columns: the verdict, one bar, the items of the peak, what was assumed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

from ..units import gib
from .parts import by_part, look

if TYPE_CHECKING:
    from ..estimate import Estimate, Share

WIDTH = 80


def render(answer: Estimate, *, explain: bool = False, colour: bool = False) -> str:
    """The answer as text; `explain` adds every formula with its values and source."""
    moment, peak = answer.peak
    lines = [*wrapped(verdict(answer), ""), *_remarks(answer), ""]
    tree = by_part(answer.ledger)
    if answer.room:
        lines += [*_bars(answer, colour), ""]
    lines += _items(answer, tree, explain=explain, colour=colour)
    lines += [_row("peak", peak, f"at {moment.value}"), *_allocator(answer), *_host(answer), *_speed(answer), ""]
    lines += ["Assumed:"]
    for text in (f"model: {answer.model.id}, from {answer.model.origin}", *answer.assumptions):
        lines += wrapped(text, "  - ")
    return "\n".join(lines)


def verdict(answer: Estimate) -> str:
    """One sentence: whether it fits, how much of what it takes, and what is to spare or missing."""
    peak, headroom = answer.peak[1], answer.headroom
    if answer.gpu is None or answer.room is None or headroom is None:
        return f"{answer.model.id} takes {gib(peak)} (no GPU named: nothing to fit into)."
    verb = "Fits" if answer.fits else "Does not fit"
    rest = f"{gib(headroom)} to spare" if headroom >= 0 else f"{gib(-headroom)} missing"
    if headroom >= 0 and not answer.fits:
        rest += ", but in pieces too small for torch's allocator"
    count = sum(share.count for share in answer.shares)
    alike = len({share.gpu.id for share in answer.shares if share.gpu}) == 1
    where = f"the fullest of {count} × {answer.gpu.name}" if count > 1 and alike else answer.gpu.name
    return f"{verb}: {gib(peak)} of {gib(answer.room)} on {where}, {rest}."


def _bars(answer: Estimate, colour: bool) -> list[str]:
    """One bar for each kind of GPU, the one that breaks first on top."""
    lines = []
    for share in answer.shares:
        if len(answer.shares) > 1:
            lines.append(f"{who(share)}: {gib(share.ledger.peak()[1])} of {gib(share.room or 0)}")
        lines.append(_bar(by_part(share.ledger), share.room or 1, colour))
    return lines


def who(share: Share) -> str:
    """The GPUs that hold a share, by number."""
    return f"GPU {share.rank}" if share.count == 1 else f"GPUs {share.rank}-{share.rank + share.count - 1}"


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


def _speed(answer: Estimate) -> list[str]:
    """What it does in a second, what bounds that, and how much of that bound is reached; nothing where it is not known."""
    found = answer.speed
    if found is None:
        return []
    low, high = found.spread
    about = f"bound by {found.bound}, {found.efficiency:.0%} ({low:.0%} to {high:.0%}) of the roofline"
    if found.step is not None and found.tokens is not None:
        return wrapped(f"speed: a step {found.step:.3g} s, {found.tokens:,.0f} tokens/s; {about}", "")
    parts = [] if found.alone is None else [f"{found.alone:,.0f} tokens/s alone"]
    if found.decode is not None and found.sequences > 1:
        parts.append(f"{found.decode:,.0f} for {found.sequences:,} at once")
    parts += [f"{found.prefill or 0:,.0f} of prompts", *([f"the first after {found.first_token:.2g} s"] if found.first_token else [])]
    return wrapped(f"speed: {', '.join(parts)}; {about}", "")


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
    letter, code, _ = look(name)
    return f"\x1b[{code}m{letter}\x1b[0m" if colour and code else letter


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
