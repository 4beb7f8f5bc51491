"""Sizes of one config that must agree with each other: what the model's own constructor would refuse, said in one line."""

from __future__ import annotations

from ..errors import BadInput
from ..tape import Dim
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
