"""A Trace for a terminal of 80 columns, and as JSON: the peak and where, what it consists of, each moment, what the allocator reserves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..units import gib

if TYPE_CHECKING:
    from ..trace.result import Peak, Trace

WIDTH = 80
MODULES = 8
"""Parts of the model that are shown, the largest."""
POINTS = 48
"""Lines of the timeline."""


def render(trace: Trace, *, gpu: str | None = None, usable: int | None = None, timeline: bool = False) -> str:
    """The trace as text; with a GPU of `usable` bytes, whether the allocator finds room on it."""
    peak, steady = trace.peak, trace.steady
    lines = [f"{trace.name}: peak {gib(peak.nbytes)} allocated, {_where(peak)}."]
    plain, expandable = trace.reserved.max_reserved, trace.reserved_expandable.max_reserved
    lines.append(f"Reserved (simulated) {gib(plain)}; with expandable segments {gib(expandable)}.")
    if usable is not None:
        lines.append(_verdict(trace, gpu or "the GPU", usable))
    lines += ["", f"At the peak, {_where(peak)}:"]
    lines += [_row(name, nbytes) for name, nbytes in peak.categories.items()]
    lines += ["", "By part of the model, at the peak:"]
    lines += [_row(name or "(no module)", nbytes) for name, nbytes in list(peak.modules.items())[:MODULES]]
    first = trace.peak_of(0)
    lines += ["", f"Steps: the first {gib(first.nbytes)}, {first.moment}; the steady one {gib(steady.nbytes)}, {steady.moment}:"]
    for (step, moment), (nbytes, _) in trace.maxima.items():
        if step == steady.step:
            lines.append(_row(moment, nbytes))
    if timeline:
        lines += ["", "Timeline:", *_timeline(trace)]
    lines += ["", "Assumed:"] + [f"  - {text}" for text in notes(trace)]
    return "\n".join(lines)


def notes(trace: Trace) -> list[str]:
    """What a reader has to know of how the trace was made."""
    texts = list(trace.assumptions)
    if trace.kernels:
        texts.append("attention ran by " + ", ".join(f"{name} ({count} times)" for name, count in trace.kernels.items()))
    asked = sum(trace.guesses.values())
    if asked:
        texts.append(f"{asked} questions for a tensor's value were answered with true or one")
    return texts


def _where(peak: Peak) -> str:
    operator = re.sub(r"\.\w+$", "", peak.op)
    module = f" of {peak.module}" if peak.module else ""
    return f"in step {peak.step + 1}, {peak.moment}, at {operator}{module}"


def _verdict(trace: Trace, gpu: str, usable: int) -> str:
    if trace.fits(usable):
        return f"Fits on {gpu}: {gib(usable)} usable."
    if trace.fits(usable, expandable=True):
        return f"Fits on {gpu} ({gib(usable)} usable) with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True only."
    return f"Does not fit on {gpu}: {gib(usable)} usable."


def _row(label: str, nbytes: int) -> str:
    return f"  {label:<52}{gib(nbytes):>12}"


def _timeline(trace: Trace) -> list[str]:
    most = max(trace.peak.nbytes, 1)
    width = WIDTH - 32
    return [
        f"  {step + 1:>3} {moment:<9}{'█' * round(nbytes * width / most):<{width}} {gib(nbytes):>11}"
        for step, moment, nbytes in trace.timeline(POINTS)
    ]


def to_dict(trace: Trace) -> dict[str, Any]:
    """JSON-ready data: bytes are integers."""
    return {
        "name": trace.name,
        "quantities": {"peak_allocated": trace.peak_allocated, "peak_reserved": trace.peak_reserved},
        "reserved": {"default": trace.reserved.max_reserved, "expandable_segments": trace.reserved_expandable.max_reserved},
        "peak": _peak(trace.peak),
        "first_step": _peak(trace.peak_of(0)),
        "steady_step": _peak(trace.steady),
        "moments": [{"step": step, "moment": moment, "nbytes": nbytes} for (step, moment), (nbytes, _) in trace.maxima.items()],
        "items": [
            {"path": list(i.path), "nbytes": i.nbytes, "alive": sorted(m.value for m in i.alive), "why": i.why, "source": i.source}
            for i in trace.ledger().items
        ],
        "kernels": dict(trace.kernels),
        "allocations": len(trace.blocks),
        "assumptions": notes(trace),
    }


def _peak(peak: Peak) -> Mapping[str, Any]:
    return {
        "nbytes": peak.nbytes,
        "step": peak.step,
        "moment": peak.moment,
        "op": peak.op,
        "module": peak.module,
        "categories": dict(peak.categories),
        "modules": dict(peak.modules),
    }
