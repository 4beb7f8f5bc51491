"""How large a model may be that strangers describe: what takes minutes to answer would keep others waiting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import BadInput

MOST_LAYERS = 512
"""Layers of a config that is sent; the deepest of the catalogue has 137. Time grows with their number alone."""
COUNTED = ("layer", "depth", "block")
"""Words of the keys that count layers, as families call them."""
MODELS = ("model", "draft_model")
"""Keys of a scenario that may hold a config."""


def modest(asked: Mapping[str, Any]) -> None:
    """BadInput where a config among a scenario's keys has more layers than are answered here."""
    for name in MODELS:
        if isinstance(asked.get(name), Mapping):
            for key, value in _numbers(asked[name]):
                if value > MOST_LAYERS and any(word in key for word in COUNTED) and "size" not in key:
                    raise BadInput(f"{name}: {key[:60]} is {value}; at most {MOST_LAYERS} are answered here, more on the command line")


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a config by key, those of nested ones too; of a list its length."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield key.lower(), value
        elif isinstance(value, list):
            yield key.lower(), len(value)
