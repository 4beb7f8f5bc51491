"""`vramplan plan`: ways to run a model on given GPUs, from a wish."""

from __future__ import annotations

import json
from typing import Any

import click

from .options import scenario_options, single
from .progress import Progress


@click.command("plan")
@scenario_options
@click.option("--global-batch", type=click.IntRange(1), help="sequences of a training step, over all GPUs and passes")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def command(global_batch: int | None, as_json: bool, **options: Any) -> int:
    """Plan how to run MODEL on --gpu: method, formats, batch, checkpointing, sharding, offload, the best first.

    What is given stays fixed. To serve, --sequences (or --users) with --context are users who are all held at once.
    """
    from ..planner.search import plan
    from ..report.plan import plans

    wish = single(options)
    with Progress("scenarios") as progress:
        found = plan(wish, global_batch=global_batch, progress=progress)
    click.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False) if as_json else plans(found, wish))
    return 0
