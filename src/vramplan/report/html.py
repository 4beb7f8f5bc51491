"""An Estimate as a small HTML table for notebooks, with the same words as the terminal's."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from ..units import gib
from .text import render as render_text

if TYPE_CHECKING:
    from ..estimate import Estimate


def render(answer: Estimate) -> str:
    """The verdict, the items of the peak with their formulas, and what was assumed."""
    moment, peak = answer.peak
    verdict = escape(render_text(answer).partition("\n")[0])
    rows = "".join(
        f"<tr><td style='text-align:left'>{escape(' / '.join(item.path))}</td><td style='text-align:right'>{gib(item.nbytes)}</td>"
        f"<td style='text-align:left'>{escape(item.why)}</td></tr>"
        for item in answer.ledger.items
        if moment in item.alive
    )
    assumed = "".join(f"<li>{escape(text)}</li>" for text in answer.assumptions)
    return (
        f"<p><b>{verdict}</b></p><table><thead><tr><th>item</th><th>memory</th><th>formula</th></tr></thead><tbody>{rows}</tbody>"
        f"<tfoot><tr><td>peak at {moment.value}</td><td>{gib(peak)}</td><td></td></tr></tfoot></table><p>Assumed:</p><ul>{assumed}</ul>"
    )
