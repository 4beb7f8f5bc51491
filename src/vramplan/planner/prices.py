"""Prices of GPUs: those of the catalogue, each dated with its source, and the user's own in their place. US dollars only.

They go stale: what they say is when. Not here: electricity, the machine around a card, taxes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..catalog.gpus import Gpu, Price, find_gpu
from ..errors import BadFile, BadInput

MAX_FILE = 1_000_000
_PRICE = re.compile(r"(?:\$\s?(\d{1,9}(?:\.\d{1,6})?)|(\d{1,9}(?:\.\d{1,6})?)\s?(?:usd|\$))\s?(/\s?h(?:our|r)?)?", re.IGNORECASE)


def parse_price(text: str, source: str) -> Price:
    """A price as people write it. Raises BadInput for one without a currency, or in another than US dollars.

    >>> parse_price("$2.40/h", "mine").per, parse_price("1599 usd", "mine").usd
    ('hour', 1599.0)
    """
    match = _PRICE.fullmatch(text.strip())
    if match is None:
        raise BadInput(
            f"price {text[:40]!r}: write it with its currency, such as 2.40usd/h (rented) or 1599usd (bought); only US dollars are known"
        )
    return Price(usd=float(match[1] or match[2]), per="hour" if match[3] else "card", date="", source=source)


def given_prices(texts: Iterable[str], path: Path | None = None) -> dict[str, tuple[Price, ...]]:
    """GPU's id -> the user's prices: a JSON file of `{"gpu": "2.40usd/h"}` and texts `gpu=2.40usd/h`, which win.

    Raises BadInput for a card that is not known, or a price that is not one.
    """
    found: dict[str, tuple[Price, ...]] = {}
    for name, price in _read(path).items() if path else ():
        if not isinstance(price, str):
            raise BadFile(f"{path.name if path else ''}: the price of {name[:40]!r} must be a text such as 2.40usd/h")
        found[find_gpu(name).id] = (parse_price(price, str(path)),)
    named: dict[str, tuple[Price, ...]] = {}
    for text in texts:
        name, sign, price = text.partition("=")
        if not sign:
            raise BadInput(f"--price {text[:60]!r}: write it as gpu=2.40usd/h or gpu=1599usd")
        gpu = find_gpu(name.strip()).id
        named[gpu] = (*named.get(gpu, ()), parse_price(price, "as given"))
    return {**found, **named}


def _read(path: Path) -> Mapping[str, object]:
    from ..sources import strict_json

    try:
        with path.open("rb") as file:
            data = strict_json.loads(file.read(MAX_FILE), path.name)
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from None
    if not isinstance(data, dict):
        raise BadFile(f'{path.name}: prices are an object such as {{"h100-sxm-80gb": "2.40usd/h"}}')
    return data


def cheapest(gpu: Gpu, own: Mapping[str, tuple[Price, ...]], per: str) -> Price | None:
    """The lowest price of a GPU, per hour or per card: the user's, else the catalogue's."""
    return min((price for price in own.get(gpu.id, gpu.prices) if price.per == per), key=lambda price: price.usd, default=None)
