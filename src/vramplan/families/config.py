"""A config.json read with suspicion: every value is checked for type and range when it is asked for, and errors name its path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from ..dim import Dim
from ..errors import BadInput

K = TypeVar("K")

MAX_SIZE = 2**31 - 1
"""No dimension of any model comes near; a torch size beyond it would not index with 32 bits."""
MAX_LAYERS = 10_000
"""Bounds the work: the deepest model in the catalogue has 126 layers."""


class Config:
    """A (nested) config with typed look-ups. Defaults are those of the family's transformers configuration class."""

    def __init__(self, raw: Mapping[str, object], path: str = "config") -> None:
        self.raw = raw
        self.path = path

    def has(self, key: str) -> bool:
        """Whether `key` is given and not null."""
        return self.raw.get(key) is not None

    def size(self, key: str, default: int | None = None, *, label: str = "", least: int = 1) -> Dim:
        """A size of at least `least`, labelled for formulas. Raises BadInput where it is missing, no integer or out of range."""
        value = self.raw.get(key)
        if value is None:
            if default is None:
                raise BadInput(f"{self.path}: {key!r} is missing")
            value = default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_SIZE:
            raise BadInput(f"{self.path}: {key!r} is {_short(value)}; it must be an integer from {least} to {MAX_SIZE}")
        return Dim(value, label or key)

    def maybe(self, key: str, label: str = "") -> Dim | None:
        """A size, or None where it is absent, null or 0 (configs say "no window" and "no low rank" in all three ways)."""
        return self.size(key, label=label) if self.raw.get(key) else None

    def flag(self, key: str, default: bool = False) -> bool:
        """A boolean."""
        value = self.raw.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadInput(f"{self.path}: {key!r} is {_short(value)}; it must be true or false")
        return value

    def share(self, key: str, default: float = 0.0) -> float:
        """A share from 0 to 1, such as a dropout."""
        value = self.raw.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise BadInput(f"{self.path}: {key!r} is {_short(value)}; it must be a number from 0 to 1")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self.raw.get(key, default)
        if value is None:
            value = default
        if not isinstance(value, str):
            raise BadInput(f"{self.path}: {key!r} is {'missing' if value is None else _short(value)}; it must be a string")
        return value

    def items(self, key: str) -> list[object] | None:
        """A list, or None where it is absent or null."""
        value = self.raw.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) > MAX_LAYERS:
            raise BadInput(f"{self.path}: {key!r} is {_short(value)}; it must be a list of at most {MAX_LAYERS} entries")
        return value

    def sub(self, key: str) -> Config:
        """The nested config `key`; empty where it is absent, so that the family's defaults speak."""
        value = self.raw.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise BadInput(f"{self.path}: {key!r} is {_short(value)}; it must be an object")
        return Config(value, f"{self.path}.{key}")

    def layers(self, key: str = "num_hidden_layers", default: int | None = None) -> int:
        """A number of layers, bounded."""
        n = int(self.size(key, default))
        if n > MAX_LAYERS:
            raise BadInput(f"{self.path}: {key!r} is {n}; at most {MAX_LAYERS} layers are accepted")
        return n

    def kinds(self, key: str, n: int, default: Sequence[str], allowed: Iterable[str]) -> list[str]:
        """The kind of each of `n` layers: the list `key`, or `default`. Raises BadInput for another length or an unknown kind."""
        given = self.items(key)
        kinds = list(default) if given is None else given
        names = tuple(allowed)
        if len(kinds) != n:
            raise BadInput(f"{self.path}: {key!r} names {len(kinds)} layers, the model has {n}")
        for kind in kinds:
            if kind not in names:
                raise BadInput(f"{self.path}: {key!r} holds {_short(kind)}; allowed are {', '.join(names)}")
        return [str(kind) for kind in kinds]


def groups(kinds: Iterable[K]) -> list[tuple[K, list[int]]]:
    """Layers grouped by kind, in the order in which the kinds first appear.

    >>> groups("ssfssf")
    [('s', [0, 1, 3, 4]), ('f', [2, 5])]
    """
    found: dict[K, list[int]] = {}
    for index, kind in enumerate(kinds):
        found.setdefault(kind, []).append(index)
    return list(found.items())


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
