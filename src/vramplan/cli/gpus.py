"""`vramplan gpus`: the GPUs of the catalogue."""

from __future__ import annotations

import json
from dataclasses import asdict

import click


@click.command("gpus")
@click.argument("query", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="all figures, with their sources, as JSON")
def command(query: tuple[str, ...], as_json: bool) -> None:
    """List the GPUs whose name holds every word of QUERY, or all of them."""
    from ..catalog.gpus import search_gpus
    from ..report.text import table
    from ..units import GiB

    found = search_gpus(" ".join(query))
    if as_json:
        click.echo(json.dumps([asdict(gpu) for gpu in found], indent=1, ensure_ascii=False))
        return
    rows = []
    for gpu in found:
        rate = gpu.rates.get("bf16") or gpu.rates.get("fp16")
        tflops = f"{rate / 1e12:,.0f} TFLOP/s" if rate else "-"
        rows.append([gpu.id, f"{gpu.usable / GiB:.2f} GiB", f"{gpu.bandwidth / 1e9:,.0f} GB/s", tflops])
    click.echo(table(["id", "usable", "bandwidth", "16-bit dense"], rows) if rows else "no GPU of that name; vramplan gpus lists all")
