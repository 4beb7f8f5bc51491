"""An Estimate as a small HTML table for notebooks, with the same words, letters and colours as the terminal's."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from ..units import gib
from .charts import bar, swatch
from .parts import by_part
from .text import verdict

if TYPE_CHECKING:
    from ..estimate import Estimate


def render(answer: Estimate) -> str:
    """The verdict, the bar, the items of the peak with their formulas, and what was assumed."""
    moment, peak = answer.peak
    rows = "".join(
        f"<tr><td>{swatch(item.path[0])}</td><td style='text-align:left'>{escape(' / '.join(item.path))}</td>"
        f"<td style='text-align:right'>{gib(item.nbytes)}</td><td style='text-align:left'>{escape(item.why)}</td></tr>"
        for item in answer.ledger.items
        if moment in item.alive
    )
    assumed = "".join(f"<li>{escape(text)}</li>" for text in answer.assumptions)
    return (
        f"<p><b>{escape(verdict(answer))}</b></p>{bar(by_part(answer.ledger), answer.room)}"
        f"<table><thead><tr><th></th><th>item</th><th>memory</th><th>formula</th></tr></thead><tbody>{rows}</tbody>"
        f"<tfoot><tr><td></td><td>peak at {moment.value}</td><td>{gib(peak)}</td><td></td></tr></tfoot></table>"
        f"<p>Assumed:</p><ul>{assumed}</ul>"
    )
