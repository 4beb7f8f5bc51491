"""`vramplan max`: the largest context, batch, rank, number of users or model that fits."""

from __future__ import annotations

import json
from typing import Any

import click

from .options import scenario_options, single
from .progress import Progress


@click.command("max")
@scenario_options
@click.option("--of", "wanted", multiple=True, metavar="WHAT", help="context, batch, rank, concurrency or model (repeatable); default: all")
@click.option("--frontier/--no-frontier", default=True, show_default=True, help="the largest batch at each length")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def command(wanted: tuple[str, ...], frontier: bool, as_json: bool, **options: Any) -> int:
    """Tell the largest context, batch, LoRA rank and number of users with which MODEL fits, exact to one.

    With `--of model` MODEL is a few words or nothing, and the answer the largest models of the catalogue that fit.
    """
    from ..planner.largest import axes, maximum
    from ..planner.largest import frontier as frontier_of
    from ..report.plan import largest, models

    if "model" in wanted:
        from ..planner.models import largest_models

        with Progress("models tried") as progress:
            answers = largest_models(single({**options, "model": "any"}), options["model"] or "", progress=progress)
        click.echo(json.dumps({"models": [a.to_dict() for a in answers]}, indent=1, ensure_ascii=False) if as_json else models(answers))
        return 0
    scenario = single(options)
    found = [maximum(scenario, of) for of in wanted or axes(scenario)]
    rows: list[tuple[int, int]] = []
    if frontier:
        with Progress("lengths") as progress:
            for row in progress.through(frontier_of(scenario)):
                rows.append(row)
    if as_json:
        table = [{"length": length, "batch": batch} for length, batch in rows]
        click.echo(json.dumps({"largest": [one.to_dict() for one in found], "frontier": table}, indent=1, ensure_ascii=False))
    else:
        click.echo(largest(found, rows))
    return 0
