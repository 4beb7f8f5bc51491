"""The largest number of which something holds, by bisection: it holds up to some number and of none above."""

from __future__ import annotations

from collections.abc import Callable


def most(holds: Callable[[int], bool], limit: int, low: int = -1) -> int:
    """The largest n above `low` and up to `limit` of which `holds` is true, where it is up to some n; `low` where it is of none."""
    high = limit
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def most_twice(holds: Callable[[int, bool], bool], limit: int, low: int = -1) -> int:
    """The same with a cheap question, `holds(n, False)`, which is true wherever the whole one, `holds(n, True)`, is.

    The cheap one finds where to begin, which is near; from there the whole one is asked in steps that double.
    """
    limit = most(lambda n: holds(n, False), limit, low)
    step = 1
    if limit == low or holds(limit, True):
        return limit
    while True:
        lower = max(limit - step, low)
        if lower == low or holds(lower, True):
            return most(lambda n: holds(n, True), limit - 1, lower)
        limit, step = lower, 2 * step


def first(holds: Callable[[int], bool], count: int) -> int:
    """The first of 0 to `count` - 1 of which it holds, as it does of all after it; `count` where of none."""
    return count - 1 - most(lambda n: holds(count - 1 - n), count - 1)


def until(holds: Callable[[int], bool], start: int, end: int) -> int:
    """The first of `start`, twice that, … of which `holds` is not true, or `end`, where all are."""
    while start < end and holds(start):
        start *= 2
    return min(start, end)
