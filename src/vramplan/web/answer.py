"""An Estimate as the page shows it: verdict, bars, items, moments, what was assumed, and how to take it along. No formula lives here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..estimate import Estimate
from ..ledger import Ledger, Moment
from ..report.charts import bar, moments, swatch
from ..report.parts import by_part
from ..report.text import verdict, who
from ..units import count, gib
from .address import Given, is_flag, text


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One item with its formula."""

    name: str
    size: str
    why: str
    source: str
    alive: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of the peak: its mark, its bytes, its share of them, and its items."""

    name: str
    mark: str
    size: str
    share: str
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One kind of GPU: who, how full, and the bar itself."""

    who: str
    figures: str
    svg: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """All that the page says of one answer."""

    state: str
    sentence: str
    rest: str
    likelihood: str
    remarks: tuple[str, ...]
    bars: tuple[Bar, ...]
    parts: tuple[Part, ...]
    peak: str
    moment: str
    moments: str
    counts: tuple[tuple[str, str], ...]
    host: tuple[tuple[str, str], ...]
    assumptions: tuple[str, ...]
    take: tuple[tuple[str, str], ...]


def shown(answer: Estimate, given: Given) -> Shown:
    """What the page says of `answer`, which was asked with `given`."""
    moment, peak = answer.peak
    sentence, _, rest = (verdict(answer) if answer.fits is None else verdict(answer).partition(": ")[2].rstrip(".")).partition(", ")
    return Shown(
        state={True: "fits", False: "short", None: "open"}[answer.fits],
        sentence=sentence,
        rest=rest,
        likelihood=_likelihood(answer),
        remarks=tuple(one[0].upper() + one[1:] + "." for one in answer.remarks),
        bars=_bars(answer),
        parts=_parts(answer.ledger),
        peak=gib(peak),
        moment=moment.value,
        moments=moments(answer.ledger, answer.room),
        counts=_counts(answer),
        host=tuple((name, gib(nbytes)) for name, nbytes in _sums(answer.host).items()),
        assumptions=(f"model: {answer.model.id}, from {answer.model.origin}", *answer.assumptions),
        take=_take(given),
    )


def filled(answer: Estimate) -> Mapping[str, Any]:
    """The scenario's keys with the defaults that the answer took."""
    return {one.name: value for one in fields(answer.scenario) if (value := getattr(answer.scenario, one.name)) is not None}


def _likelihood(answer: Estimate) -> str:
    """The chance that it fits, in per cent; empty where it is not told."""
    chance = answer.likelihood
    return "" if chance is None else f"{100 * chance:.0f} %"


def _bars(answer: Estimate) -> tuple[Bar, ...]:
    bars = []
    for share in answer.shares:
        peak, several = share.ledger.peak()[1], len(answer.shares) > 1 or share.count > 1
        name = share.gpu.name if share.gpu else "no GPU named"
        figures = f"{gib(peak)} of {gib(share.room)} usable" if share.room else gib(peak)
        bars.append(Bar(who=f"{who(share)}, {name}" if several else name, figures=figures, svg=bar(by_part(share.ledger), share.room)))
    return tuple(bars)


def _parts(held: Ledger) -> tuple[Part, ...]:
    moment, peak = held.peak()
    parts = []
    for name, nbytes in by_part(held).items():
        items = [item for item in held.items if item.path[0] == name and moment in item.alive]
        lines = tuple(
            Line(
                name=" / ".join(item.path[1:]) or name,
                size=gib(item.nbytes),
                why=item.why,
                source=item.source,
                alive=", ".join(sorted((one.value for one in item.alive), key=_order.index)),
            )
            for item in items
        )
        parts.append(Part(name=name, mark=swatch(name), size=gib(nbytes), share=f"{100 * nbytes / (peak or 1):.0f} %", lines=lines))
    return tuple(parts)


_order = [one.value for one in Moment]


def _counts(answer: Estimate) -> tuple[tuple[str, str], ...]:
    """Every quantity of the machine interface: bytes as sizes, counts as counts."""
    numbers = {"parameters": count, "active_parameters": count, "trainable_parameters": count}
    whole = ("kv_tokens", "longest_context")
    rows = []
    for name, value in answer.quantities.items():
        shown = numbers[name](value) if name in numbers else f"{value:,}" if name in whole else gib(value)
        rows.append((name, shown))
    return tuple(rows)


def _sums(held: Ledger) -> dict[str, int]:
    parts: dict[str, int] = {}
    for item in held.items:
        parts[item.path[0]] = parts.get(item.path[0], 0) + item.nbytes
    return parts


def _take(given: Given) -> tuple[tuple[str, str], ...]:
    """The scenario for a terminal, for a program and as a file, by what it is called."""
    data = json.dumps(given, indent=1, ensure_ascii=False)
    code = ", ".join(f"{name}={value!r}" for name, value in given.items() if name != "model")
    python = f"import vramplan\n\nanswer = vramplan.estimate({given['model']!r}{', ' if code else ''}{code})"
    if any(isinstance(given.get(name), Mapping) for name in ("model", "draft_model", "kv_dtype")) or any(map(is_flag, given)):
        return (("scenario.json, for vramplan estimate --scenario", data), ("Python", python))
    flags = " ".join(f"--{name.replace('_', '-')} {shlex.quote(_flag(value))}" for name, value in given.items() if name != "model")
    command = f"vramplan estimate {shlex.quote(str(given['model']))} {flags}".strip()
    return (("Command line", command), ("scenario.json, for vramplan estimate --scenario", data), ("Python", python))


def _flag(value: object) -> str:
    """A value as the command line takes it: parts as `rank=8,targets=all-linear`."""
    return ",".join(f"{part}={text(entry)}" for part, entry in value.items()) if isinstance(value, Mapping) else text(value)
