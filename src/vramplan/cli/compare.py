"""`vramplan compare`: several scenarios in one table."""

from __future__ import annotations

import json
from typing import Any

import click

from ..errors import BadInput
from .options import scenario_options, scenarios


@click.command("compare")
@scenario_options
@click.option("--json", "as_json", is_flag=True, help="the answers as a JSON list")
def command(as_json: bool, **options: Any) -> None:
    """Compare MODEL on several cards (--gpu A --gpu B), or with several --weights, --context or --kv-dtype."""
    from ..estimate import estimate
    from ..report.compare import render

    asked = scenarios(options)
    if len(asked) < 2:
        raise BadInput("compare: give at least two values of --gpu, --weights, --context or --kv-dtype")
    answers = [estimate(one) for one in asked]
    click.echo(json.dumps([answer.to_dict() for answer in answers], indent=1, ensure_ascii=False) if as_json else render(answers))
