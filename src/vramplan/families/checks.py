"""Sizes of one config that must agree with each other: what the model's own constructor would refuse, said in one line."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..dim import Dim
from ..errors import BadInput
from .config import Config


def multiple(c: Config, whole: Dim, part: Dim) -> Dim:
    """whole / part. Raises BadInput where it does not divide.

    >>> multiple(Config({}), Dim(32, "heads"), Dim(8, "kv_heads"))
    4
    """
    if int(whole) % int(part):
        raise BadInput(f"{c.path}: {whole.label} is {int(whole)}; it must be a multiple of {part.label}, which is {int(part)}")
    return whole // part


def at_most(c: Config, small: Dim, large: Dim) -> Dim:
    """`small`. Raises BadInput where it is greater than `large`."""
    if small > large:
        raise BadInput(f"{c.path}: {small.label} is {int(small)}; it must be at most {large.label}, which is {int(large)}")
    return small


def few(c: Config, key: str, kinds: Collection[object]) -> None:
    """Raises BadInput where the layers have more than 64 different sizes: each is walked once, and no release has more than five."""
    if len(set(kinds)) > 64:
        raise BadInput(f"{c.path}: {key!r} gives the layers {len(set(kinds))} different sizes; at most 64 are accepted")


def layer_set(c: Config, key: str, default: Iterable[int] = ()) -> frozenset[int]:
    """The layers that the list `key` names. Raises BadInput for an entry that is no integer; those beyond the last layer mean nothing."""
    given = c.items(key)
    if given is None:
        return frozenset(default)
    found = [index for index in given if isinstance(index, int)]
    if len(found) < len(given):
        raise BadInput(f"{c.path}: {key!r} must hold layer numbers, and nothing else")
    return frozenset(found)
