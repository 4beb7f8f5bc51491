"""`vramplan estimate`: the memory that a scenario takes, and whether it fits."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click

from .options import scenario_options, scenarios


@click.command("estimate")
@scenario_options
@click.option("--explain", is_flag=True, help="every item with its formula, values and source")
@click.option("--json", "as_json", is_flag=True, help="the answer as JSON")
@click.option("--check", is_flag=True, help="exit with status 1 if it does not fit")
def command(explain: bool, as_json: bool, check: bool, **options: Any) -> int:
    """Tell how much GPU memory MODEL takes, what it consists of, and whether it fits.

    MODEL is a catalogue name, a Hugging Face repo id, a config.json, a model folder, a .gguf or a .safetensors file. Several --gpu,
    --weights, --context or --kv-dtype in one call give a table.
    """
    from ..estimate import estimate
    from ..report.text import render

    answers = [estimate(asked) for asked in scenarios(options)]
    if as_json:
        data = [answer.to_dict() for answer in answers]
        click.echo(json.dumps(data[0] if len(data) == 1 else data, indent=1, ensure_ascii=False))
    elif len(answers) > 1:
        from ..report.compare import render as render_table

        click.echo(render_table(answers))
    else:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        click.echo(render(answers[0], explain=explain, colour=colour), color=colour)
    return 1 if check and any(answer.fits is False for answer in answers) else 0
