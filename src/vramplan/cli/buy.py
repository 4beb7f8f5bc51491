"""`vramplan buy`: which GPUs have room for a model, by price, speed, or of those at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..errors import BadInput
from .options import scenario_options, single
from .progress import Progress


@click.command("buy")
@scenario_options
@click.option("--by", default="price", show_default=True, help="price (rented), card (bought), token (rented, of a token) or speed")
@click.option(
    "--price", "given", multiple=True, metavar="GPU=PRICE", help="a price in place of the catalogue's: 2.40usd/h or 1599usd (repeatable)"
)
@click.option("--prices", "file", type=click.Path(path_type=Path), metavar="FILE", help='prices as JSON: {"rtx-4090": "0.35usd/h"}')
@click.option("--have", multiple=True, metavar="GPU[=N]", help="only these, and at most so many (repeatable)")
@click.option("--limit", type=click.IntRange(1), default=12, show_default=True, help="rows at most")
@click.option("--json", "as_json", is_flag=True, help="as JSON")
def command(by: str, given: tuple[str, ...], file: Path | None, have: tuple[str, ...], limit: int, as_json: bool, **options: Any) -> int:
    """Tell which GPUs have room for MODEL, and how many of each it takes.

    Prices are US dollars and dated; your own go before the catalogue's.
    """
    from ..planner.buy import buy
    from ..planner.prices import given_prices
    from ..report.plan import offers

    prices = given_prices(given, file)
    at_hand = dict(_had(text) for text in have)
    with Progress("GPUs") as progress:
        found = buy(single(options), by=by, prices=prices, at_hand=at_hand, progress=progress)
    click.echo(json.dumps({"offers": [one.to_dict() for one in found]}, indent=1, ensure_ascii=False) if as_json else offers(found, limit))
    return 0


def _had(text: str) -> tuple[str, int]:
    name, sign, number = text.partition("=")
    if sign and not (number.isascii() and number.isdigit() and 0 < len(number) < 5 and int(number)):
        raise BadInput(f"--have {text[:60]!r}: write it as gpu or gpu=2, with at least one")
    return name.strip(), int(number) if sign else 1
