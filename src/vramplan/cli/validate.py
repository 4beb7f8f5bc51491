"""`vramplan validate`: the answers against measurements."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import click
from click.termui import progressbar


@click.command("validate")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="groups and rows as JSON")
@click.option("--worst", default=10, show_default=True, help="rows shown of the worst")
def command(file: Path, as_json: bool, worst: int) -> None:
    """Estimate every measurement of FILE (JSON lines) and report signed errors, per group and over all."""
    from ..measured.validate import read, replay, summaries, to_json
    from ..report.text import table

    measurements = list(read(file))
    with progressbar(measurements, label="replaying", file=sys.stderr) as bar:
        rows = [replay(measurement) for measurement in bar]
    if as_json:
        click.echo(to_json(rows))
        return

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:+.2f} %"

    header = ["group", "n", "refused", "median |e|", "90 % |e|", "median e", "under by > 5 %"]
    lines = [
        [name, str(s.n), str(s.refused), percent(s.median_abs), percent(s.p90_abs), percent(s.median_signed), str(s.under)]
        for name, s in summaries(rows).items()
    ]
    click.echo(table(header, lines))
    ranked = sorted((row for row in rows if row.error), key=lambda row: -abs(row.error or 0))[:worst]
    if ranked:
        shown = [[row.id, row.quantity, f"{row.predicted:,.0f}", f"{row.observed:,.0f}", percent(row.error)] for row in ranked]
        click.echo("\n" + table(["worst rows", "quantity", "predicted", "observed", "error"], shown))
    reasons = Counter(row.refused for row in rows if row.refused)
    if reasons:
        click.echo("\n" + table(["refused because", "rows"], [[str(reason)[:100], str(n)] for reason, n in reasons.most_common()]))
