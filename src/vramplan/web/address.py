"""The address is the state: a query string to the keys of a scenario, and back. Knows neither pages nor models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from ..errors import BadInput
from ..scenario import keys
from ..sources.local import parse_config
from .bounds import MODELS, modest

Given = dict[str, Any]
"""A scenario's keys as they were given: texts, lists of texts, or objects."""

LONGEST = 32_000
"""Characters of a query at most; servers and browsers take 32 to 64 thousand."""


def pairs(query: str, *, empty: bool = False) -> list[tuple[str, str]]:
    """The names and values of a query string; `empty` values are left out or not. Raises BadInput for one that is too long."""
    if len(query) > LONGEST:
        raise BadInput(f"an address of {len(query):,} characters: at most {LONGEST:,} are read; send a large config to the API")
    try:
        found = parse_qsl(query.removeprefix("?"), keep_blank_values=empty, max_num_fields=300, encoding="utf-8", errors="replace")
    except ValueError:
        raise BadInput("an address of more than 300 values") from None
    return [(name, value.strip()) for name, value in found if empty or value.strip()]


def given(query: Sequence[tuple[str, str]]) -> tuple[Given, dict[str, str]]:
    """The scenario's keys among a query's pairs, and what is left of it. `lora.rank=8` is a part of `lora`; a list may come in pieces.

    >>> given([("model", "gpt2"), ("offload", "optimizer"), ("offload", "activations"), ("lora.rank", "8"), ("fbclid", "x")])
    ({'model': 'gpt2', 'offload': 'optimizer,activations', 'lora': {'rank': '8'}}, {'fbclid': 'x'})
    """
    known, values, rest = {"model": None, **keys()}, Given(), dict[str, str]()
    for name, value in query:
        whole, dot, part = name.partition(".")
        if whole not in known or (dot and whole not in ("lora", "kv_dtype")):
            rest[name] = value
        elif dot:
            values.setdefault(whole, {})
            if not isinstance(values[whole], dict):
                raise BadInput(f"{whole} is given as a whole and in parts: give one of them")
            values[whole][part] = value
        elif whole in MODELS and value.startswith("{"):
            values[whole] = parse_config(value.encode(), "the config in the address")
        elif is_list(whole) and whole in values:
            values[whole] += f",{value}"
        else:
            values[whole] = value
    modest(values)
    return values, rest


def is_list(key: str) -> bool:
    """Whether a key of the scenario takes a list."""
    return _takes(key, "array")


def is_flag(key: str) -> bool:
    """Whether a key of the scenario takes yes or no."""
    return _takes(key, "boolean")


def _takes(key: str, kind: str) -> bool:
    return key in keys() and any(one.get("type") == kind for one in keys()[key]["read"].schema.get("anyOf", ()))


def address(values: Mapping[str, Any], path: str = "/", **changes: Any) -> str:
    """The address of a scenario's keys in the scenario's own order, with `changes`, of which None takes a key away.

    >>> address({"gpu": "rtx-4090", "model": "a/b", "lora": {"rank": 8}}, gpu=None, task="train")
    '/?model=a/b&task=train&lora.rank=8'
    """
    merged = {**values, **changes}
    ordered = [name for name in ("model", *keys()) if merged.get(name) is not None]
    extra = [name for name in changes if name not in ordered and merged[name] is not None]
    flat: list[tuple[str, str]] = []
    for name in (*ordered, *extra):
        value = merged[name]
        if isinstance(value, Mapping) and name not in MODELS:
            flat += [(f"{name}.{part}", text(entry)) for part, entry in value.items()]
        else:
            flat.append((name, text(value)))
    query = urlencode(flat, quote_via=lambda one, *_: quote(one, safe="/:,"))
    return f"{path}?{query}" if query else path


def several(queries: Sequence[str]) -> str:
    """The query of several scenarios, each the query of one or its address.

    >>> several(["/?model=a", "model=b&task=train"])
    's=model%3Da&s=model%3Db%26task%3Dtrain'
    """
    return urlencode([("s", one.rpartition("?")[2]) for one in queries])


def text(value: object) -> str:
    """A value as an address and a form field hold it.

    >>> text(True), text(["a", "b"]), text({"model_type": "llama"})
    ('true', 'a,b', '{"model_type":"llama"}')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return ",".join(map(text, value)) if isinstance(value, list | tuple) else str(value)
