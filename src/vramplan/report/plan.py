"""The planner's answers for a terminal of 80 columns: tables, the answer in the first line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..scenario import FLAGS
from ..units import count, gib
from .text import table, verdict, wrapped

if TYPE_CHECKING:
    from ..estimate import Estimate
    from ..planner.buy import Offer
    from ..planner.fix import Fix
    from ..planner.largest import Largest
    from ..planner.search import Plans
    from ..scenario import Scenario
    from ..sources.machine import Found


def chance(likelihood: float | None) -> str:
    """A likelihood as a percentage that never claims certainty."""
    return "-" if likelihood is None else f"{100 * likelihood:.0f} %"


def largest(found: Sequence[Largest], frontier: Sequence[tuple[int, int]]) -> str:
    """What `max` found: each largest value, why not one more, and the frontier."""
    first = next((one.answer for one in found if one.answer), None)
    lines = [f"{first.model.id} on {_where(first)}, {first.scenario.engine}:", ""] if first else []
    rows = []
    for one in found:
        fits = one.answer if one.value is not None else None
        spare = gib(fits.headroom) if fits and fits.headroom is not None else "-"
        value = f"{one.value:,}" if one.value is not None else "none"
        rows.append([one.of, value, spare, chance(fits.likelihood if fits else None)])
    lines.append(table(["largest", "value", "to spare", "likely to fit"], rows))
    for one in found:
        more = f"{one.of} {(one.value or 0) + 1:,}"
        lines += wrapped(f"{more}: {one.beyond}.", "  ")
    if frontier:
        lines += ["", table(["tokens", "largest batch"], [[f"{tokens:,}", f"{batch:,}"] for tokens, batch in frontier])]
    return "\n".join(lines)


def models(answers: Sequence[Estimate]) -> str:
    """The largest models that fit."""
    if not answers:
        return "No model of the catalogue fits."
    rows = [
        [answer.model.id, count(answer.facts["parameters"]), gib(answer.peak[1]), gib(answer.headroom or 0), chance(answer.likelihood)]
        for answer in answers
    ]
    return table(["largest models that fit", "parameters", "takes", "to spare", "likely to fit"], rows)


def _where(answer: Estimate) -> str:
    number = sum(share.count for share in answer.shares)
    return f"{f'{number} × ' if number > 1 else ''}{answer.gpu.name if answer.gpu else 'no GPU'}"


def fix(found: Fix) -> str:
    """What `fix` found: the smallest set first, then each remedy alone."""
    lines = wrapped(verdict(found.asked), "")
    if found.asked.fits:
        lines += ["Nothing needs to change; what would save memory:"]
    elif found.fitted:
        lines += wrapped(f"Fits with: {'; '.join(f'{step.remedy.name} ({flags(step.change)})' for step in found.smallest)}.", "")
        lines += wrapped(verdict(found.fitted), "")
        for step in found.smallest:
            lines += wrapped(f"{step.remedy.name} gives up {step.remedy.gives_up}.", "  - ")
    elif found.nearest:
        lines += wrapped(f"No set of remedies makes it fit; all together: {verdict(found.nearest)}", "")
    rows = [
        [step.remedy.name, step.remedy.kind, gib(step.saves), "yes" if step.fits else "no", pace(step.pace), flags(step.change)]
        for step in found.alone
    ]
    return "\n".join([*lines, "", table(["remedy alone", "class", "saves", "fits", "speed", "as"], rows)] if rows else lines)


def pace(value: float | None) -> str:
    """What is left of the speed, as a factor."""
    return "-" if value is None else f"× {value:.2f}"


def flags(change: Mapping[str, Any]) -> str:
    """A change of keys as options of the command line."""
    said = []
    for key, value in change.items():
        if value is None:
            continue
        flag = f"--{key.replace('_', '-')}"
        if key in FLAGS:
            said.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, Mapping):
            said.append(f"{flag} {','.join(f'{name}={part}' for name, part in value.items())}")
        else:
            said.append(f"{flag} {','.join(map(str, value)) if isinstance(value, tuple) else value}")
    return " ".join(said)


def plans(found: Plans, wish: Scenario) -> str:
    """What `plan` found: each plan with what it gives up and the options that make it, the best first."""
    if not found.plans:
        return _nothing(found, wish)
    first = found.plans[0].answer
    head = f"{first.model.id} on {_where(first)}: {_count(len(found.plans), 'plan')}, best first."
    if not found.likely:
        head += " None is likely enough to fit to be recommended."
    lines = wrapped(head, "")
    if not found.whole:
        lines += wrapped("Interrupted: the best so far.", "")
    for number, one in enumerate(found.plans, 1):
        speed = f"{one.rate:,.0f} tokens/s" if one.rate else "speed not known"
        margin = f"{gib(one.headroom)} to spare, {chance(one.likelihood)} likely to fit"
        told = f"{speed}, {margin}; gives up {'; '.join(one.gives_up) or 'nothing'}."
        lines += ["", *wrapped(told, f"{number}. "), *wrapped(flags(_chosen(one.scenario, wish)), "   ")]
    return "\n".join(lines)


def _nothing(found: Plans, wish: Scenario) -> str:
    if not found.nearest:
        return "Nothing meets the wish: every choice is refused."
    near = found.nearest
    told = f"Nothing meets the wish. Nearest comes, with {gib(-near.headroom)} missing of {gib(near.answer.room or 0)}:"
    return "\n".join(
        [*wrapped(told, ""), *wrapped(f"{'; '.join(near.gives_up)}.", "  "), *wrapped(flags(_chosen(near.scenario, wish)), "  ")]
    )


def _chosen(made: Scenario, wish: Scenario) -> dict[str, Any]:
    """The keys that a plan has beyond the wish."""
    had = {f.name: getattr(wish, f.name) for f in fields(wish)}
    silent = {"engine_version", *(("weights", "kv_dtype") if made.task == "train" else ())}
    values = {f.name: getattr(made, f.name) for f in fields(made) if f.name not in silent}
    return {name: value for name, value in values.items() if value not in (None, "auto") and value != had.get(name)}


def offers(found: Sequence[Offer], shown: int) -> str:
    """What `buy` found, the best first."""
    if not found:
        return "No GPU of the catalogue, and no number of one that was tried, has room for it."
    rows = []
    for one in found[:shown]:
        number = f"{one.count} × {one.name}" if one.count > 1 else one.name
        rate, runs = one.plan.rate, one.plan.scenario.engine or ""
        prices = [dollars(value) for value in (one.per_hour, one.to_buy, one.per_million_tokens)]
        rows.append([number, *prices, f"{rate:,.0f}" if rate else "-", gib(one.plan.headroom), chance(one.plan.likelihood), runs])
    header = ["GPUs", "$/h", "to buy", "$/M tokens", "tokens/s", "to spare", "likely", "engine"]
    lines = [f"{found[0].plan.answer.model.id}: {_count(len(found), 'kind')} of GPU have room, best first.", "", table(header, rows)]
    if len(found) > shown:
        lines.append(f"… and {len(found) - shown} more: --limit {len(found)}")
    used = {(p.date, p.source) for one in found[:shown] for p in (one.rent, one.bought) if p}
    notes = [f"{source}{f', {date}' if date else ''}" for date, source in sorted(used)]
    return "\n".join(
        [*lines, *(["", "Prices, which go stale:"] if notes else []), *(line for note in notes for line in wrapped(note, "  - "))]
    )


def dollars(value: float | None) -> str:
    """An amount in dollars."""
    return "-" if value is None else f"${value:,.0f}" if value >= 100 else f"${value:,.2f}"


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def machine(found: Sequence[Found]) -> str:
    """What `detect` found: a row for each GPU, and who holds memory of it."""
    rows = [[f"{one.index} {one.name}", gib(one.total), gib(one.free), gib(one.used), one.id or "not in the catalogue"] for one in found]
    lines = [table(["GPU", "total", "free", "used", "as"], rows)]
    for one in found:
        for who in one.holders:
            held = gib(who.nbytes) if who.nbytes is not None else "an unknown amount"
            lines.append(f"  GPU {one.index}: process {who.pid} ({who.name}) holds {held}")
    return "\n".join(lines)
