"""Dim: a size with a name, so that formulas can be printed with their values, and split by a name wherever it occurs."""

from __future__ import annotations

from collections.abc import Iterable

SPACED = {"+": " + "}


class Dim(int):
    """A size that remembers its name, so that a formula can be printed: products, sums and quotients of Dims carry labels.

    >>> heads, head_dim = Dim(32, "heads"), Dim(128, "head_dim")
    >>> (heads * head_dim, (heads * head_dim).label)
    (4096, 'heads·head_dim')
    """

    name: str
    parts: tuple[str, int, int] | None
    """How it was made of two others: `·`, `+` or `/`, and both; None for a size of its own."""

    def __new__(cls, value: int, name: str = "", parts: tuple[str, int, int] | None = None) -> Dim:
        self = super().__new__(cls, value)
        self.name, self.parts = name, parts
        return self

    @property
    def label(self) -> str:
        """Its name, or how it was made of named ones; the bare number where it has none."""
        if self.name or self.parts is None:
            return self.name or str(int(self))
        sign, left, right = self.parts
        made = f"{_label(left)}{SPACED.get(sign, sign)}{_label(right)}"
        return f"({made})" if sign == "+" else made

    def __mul__(self, other: int) -> Dim:
        return Dim(int.__mul__(self, other), "", ("·", self, other))

    def __rmul__(self, other: int) -> Dim:
        return Dim(int.__mul__(self, other), "", ("·", other, self))

    def __add__(self, other: int) -> Dim:
        return Dim(int.__add__(self, other), "", ("+", self, other))

    def __radd__(self, other: int) -> Dim:
        return self if other == 0 else Dim(int.__add__(self, other), "", ("+", other, self))

    def __floordiv__(self, other: int) -> Dim:
        return self if other == 1 else Dim(int.__floordiv__(self, other), "", ("/", self, other))


def _label(size: int) -> str:
    return size.label if isinstance(size, Dim) else str(size)


def numel(shape: Iterable[int]) -> int:
    """Elements of a tensor of `shape`: a plain int, whatever labels the sizes carry."""
    n = 1
    for size in shape:
        n = int.__mul__(n, size)
    return n


def shape_label(shape: Iterable[int]) -> str:
    """`"[heads·head_dim=4096 · hidden=4096]"`: a shape with names and values."""
    parts = (f"{d.label}={int(d)}" if isinstance(d, Dim) and not d.label.isdigit() else str(int(d)) for d in shape)
    return f"[{' · '.join(parts)}]"
