"""The ledger: a flat list of line items, each alive at some moments. The peak, the tree, the chart and the JSON are views of it.

It knows nothing of language models: whoever fills it says what an item is, when it is alive, why it has that size and who says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Moment(Enum):
    """The moments of a run at which memory is looked at, in their order: `REFERENCE` is a reference model's pass over a training batch."""

    LOAD = "load"
    PROFILE = "profile"
    PREFILL = "prefill"
    DECODE = "decode"
    GENERATE = "generate"
    FORWARD = "forward"
    REFERENCE = "reference"
    LOSS = "loss"
    BACKWARD = "backward"
    STEP = "step"

    __hash__ = object.__hash__  # Enum's own is a Python function, and every sum over moments asks for it


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One line: `nbytes` bytes at `path`, alive at some moments, with the formula (`why`) and who says so (`source`)."""

    path: tuple[str, ...]
    nbytes: int
    alive: frozenset[Moment]
    why: str
    source: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """Line items of one device."""

    items: tuple[Item, ...]

    def at(self, moment: Moment) -> int:
        """Bytes alive at `moment`."""
        return sum(item.nbytes for item in self.items if moment in item.alive)

    def peak(self) -> tuple[Moment, int]:
        """The moment with most bytes alive (the earliest of equals) and those bytes."""
        seen = frozenset().union(*(item.alive for item in self.items))
        moments = ((moment, self.at(moment)) for moment in Moment if moment in seen)
        return max(moments, key=lambda pair: pair[1], default=(Moment.LOAD, 0))

    def total(self, *path: str, moment: Moment | None = None) -> int:
        """Bytes of the items below `path`, at `moment` or whenever they are alive."""
        depth = len(path)
        return sum(i.nbytes for i in self.items if i.path[:depth] == path and (moment is None or moment in i.alive))

    def tree(self, moment: Moment, depth: int = 1) -> dict[tuple[str, ...], int]:
        """Bytes alive at `moment`, summed by the first `depth` parts of the path, in the order of the ledger."""
        totals: dict[tuple[str, ...], int] = {}
        for item in self.items:
            if moment in item.alive:
                totals[item.path[:depth]] = totals.get(item.path[:depth], 0) + item.nbytes
        return totals


def ledger(items: Iterable[Item]) -> Ledger:
    """A ledger of `items`, without the empty ones."""
    return Ledger(tuple(item for item in items if item.nbytes))
