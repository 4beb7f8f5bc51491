"""`vramplan models`: the models of the catalogue."""

from __future__ import annotations

import json

import click


@click.command("models")
@click.argument("query", nargs=-1)
@click.option("--limit", default=20, show_default=True, help="rows at most")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def command(query: tuple[str, ...], limit: int, as_json: bool) -> None:
    """List the models that QUERY may mean, the likeliest first."""
    from ..catalog.models import search_models
    from ..report.text import table

    found = search_models(" ".join(query), limit)
    if as_json:
        rows = [{"id": m.id, "context_length": m.context_length, "licence": m.licence, "downloads": m.downloads} for m in found]
        click.echo(json.dumps(rows, indent=1))
        return
    lines = [[m.id, f"{m.context_length:,}" if m.context_length else "-", m.licence or "-", f"{m.downloads or 0:,}"] for m in found]
    click.echo(table(["id", "context", "licence", "downloads"], lines) if lines else "no model of that name in the catalogue")
