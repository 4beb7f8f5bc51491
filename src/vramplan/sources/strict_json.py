"""JSON from strangers: UTF-8 only, no duplicate keys, no NaN, bounded in depth, number of values and size of integers.

The one thing beyond JSON that passes is `Infinity`, which transformers wrote until version 5: Mamba-2 configs, such as
nvidia/Nemotron-H-8B-Base-8K, have `"time_step_limit": [0.0, Infinity]` (huggingface/transformers pull request 42959).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import BadFile
from .stored import repeated, shown

MAX_VALUES = 12_000_000
"""Values of a document at most: a safetensors header of a million tensors has about 10 million. Bounds memory to about 0.5 GB."""

Pairs = list[tuple[str, Any]]


def loads(data: bytes, name: str, *, objects: Callable[[Pairs], Any] | None = None) -> Any:
    """The value that `data` holds. `objects` makes an object of its (key, value) pairs; by default a dict with unique keys.

    Raises BadFile, in the name of `name`, for anything that is not strict JSON, and for a ValueError of `objects`.

    >>> loads(b'{"a": [1, 2.5, null]}', "x.json")
    {'a': [1, 2.5, None]}
    """
    import json

    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise BadFile(f"{name}: JSON of more than {MAX_VALUES:,} values")
    try:
        text = data.decode("utf-8")
        value = json.loads(text, object_pairs_hook=objects or unique, parse_constant=_constant, parse_float=_finite, parse_int=_integer)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")  # half of a surrogate pair cannot be printed
    except RecursionError:
        raise BadFile(f"{name}: JSON nested too deeply") from None
    except (json.JSONDecodeError, UnicodeError) as error:
        raise BadFile(f"{name}: not valid JSON: {error}") from None
    except ValueError as error:
        raise BadFile(f"{name}: {error}") from None
    return value


def unique(pairs: Pairs) -> dict[str, Any]:
    """A dict of `pairs`; ValueError if a key comes twice (RFC 8259 section 4: what such an object means is unpredictable)."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError(f"key {shown(repeated(key for key, _ in pairs))} is there twice")
    return fields


def depth(value: Any) -> int:
    """How many lists and dicts are nested in one another.

    >>> depth({"a": [1, {}]}), depth(1)
    (3, 0)
    """
    level, n = [value], 0
    while level := [v for v in level if isinstance(v, (dict, list))]:
        level = [child for v in level for child in (v.values() if isinstance(v, dict) else v)]
        n += 1
    return n


def _constant(text: str) -> float:
    if text == "NaN":
        raise ValueError("NaN is not a number that we read")
    return float(text)


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"number {shown(text)} is too large")
    return number


def _integer(text: str) -> int:
    if len(text) > 20:  # 2^64 has 20 digits
        raise ValueError(f"integer of {len(text)} digits")
    return int(text)
