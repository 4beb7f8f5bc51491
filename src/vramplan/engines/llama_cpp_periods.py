"""Which layers stand for all: one of every kind in every neighbourhood, in an order in which each has its own neighbours.

What a layer takes of the allocator and gives back depends on what it is like, on the layers beside it, and on whether it is the first or
the last of its kind (inputs are copied for the first, and freed after the last).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

Context = tuple[Hashable, Hashable, Hashable]


def representatives(kinds: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """The indexes of layers that stand for all, and for each layer which of these, of layers of these kinds.

    >>> representatives("aaaaaaaa")
    ([0, 1, 2, 6, 7], [0, 1, 2, 2, 2, 2, 3, 4])
    """
    first, last = {kind: i for i, kind in reversed(list(enumerate(kinds)))}, {kind: i for i, kind in enumerate(kinds)}
    numbers = {kind: 4 * n for n, kind in enumerate(first)}
    marked = [-1, *(numbers[kind] + (i == first[kind]) + 2 * (i == last[kind]) for i, kind in enumerate(kinds)), -1]
    contexts = list(zip(marked, marked[1:], marked[2:], strict=False))
    kept: list[int] = []
    seen: dict[tuple[int, int, int], int] = {}
    fresh = 0  # the place of the last context that was new
    for i, context in enumerate(contexts):
        before = seen.get(context)
        if before is None:
            fresh = seen[context] = len(kept)
        elif before >= fresh:
            del kept[before + 1 :]
            continue
        kept.append(i)
    return kept, [seen[context] for context in contexts]
