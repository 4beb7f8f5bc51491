"""`vramplan detect`: the GPUs of this machine, and what is free of them."""

from __future__ import annotations

import json

import click


@click.command("detect")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def command(as_json: bool) -> int:
    """Show this machine's GPUs: free and used memory, and which processes hold it. `--gpu auto` plans for what is free.

    NVIDIA's need: pip install 'vramplan[detect]'.
    """
    from ..sources.machine import detect, why_none

    found = detect()
    if as_json:
        click.echo(json.dumps({"gpus": [one.to_dict() for one in found]}, indent=1, ensure_ascii=False))
    elif not found:
        click.echo(f"No GPU found on this machine: {why_none()}.")
    else:
        from ..report.plan import machine

        click.echo(machine(found))
    return 0
