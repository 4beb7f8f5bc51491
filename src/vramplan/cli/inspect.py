"""`vramplan inspect`: a model's layers, parameters by kind, stored tensors and cache per token."""

from __future__ import annotations

import json

import click


@click.command("inspect")
@click.argument("model")
@click.option("--tensors", is_flag=True, help="every weight with its shape")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def command(model: str, tensors: bool, as_json: bool) -> None:
    """Show what MODEL is made of: layers by kind, parameters by part, active parameters, cache per token."""
    from ..inspect import inspect
    from ..report.inspect import render

    found = inspect(model)
    click.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False) if as_json else render(found, tensors=tensors))
