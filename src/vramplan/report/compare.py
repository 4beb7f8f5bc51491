"""Several Estimates as one table: a row each, with the columns in which their scenarios differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..units import gib
from .text import table

if TYPE_CHECKING:
    from ..estimate import Estimate

_COLUMNS = {"gpu": "GPU", "weights": "weights", "context_length": "context", "kv_dtype": "KV type"}


def render(answers: Sequence[Estimate]) -> str:
    """A table of the answers: what differs, weights, cache and everything else at the peak, and the verdict."""
    differ = [key for key in _COLUMNS if len({str(getattr(a.scenario, key)) for a in answers}) > 1] or ["gpu"]
    header = [*(_COLUMNS[key] for key in differ), "weights", "KV cache", "other", "peak", "of", "fits"]
    rows = []
    for answer in answers:
        moment, peak = answer.peak
        weights, cache = (answer.ledger.total(name, moment=moment) for name in ("weights", "kv cache"))
        room = gib(answer.room) if answer.room else "-"
        verdict = {True: "yes", False: "no", None: "-"}[answer.fits]
        cells = [_cell(answer, key) for key in differ]
        rows.append([*cells, gib(weights), gib(cache), gib(peak - weights - cache), gib(peak), room, verdict])
    return f"{answers[0].model.id}\n\n{table(header, rows)}"


def _cell(answer: Estimate, key: str) -> str:
    if key == "gpu":
        return answer.gpu.name if answer.gpu else "-"
    value = getattr(answer.scenario, key)
    return f"{value:,}" if isinstance(value, int) else str(value)
