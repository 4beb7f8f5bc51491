"""What would make it fit, as flags: the smallest --n-cpu-moe, the largest -ngl, the largest -c.

Each is found twice: first without compute buffers, whose graphs are slow, and from there on, which is near, with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ..scenario import Scenario

Fits = Callable[[Scenario, bool], bool]
"""Whether a scenario fits, with or (False) without its compute buffers."""


def advice(s: Scenario, fits: Fits, *, layers: int, context: int, moe: bool) -> Iterator[str]:
    """Flags with which a scenario fits that does not; `layers` of the model, `context` tokens asked for."""
    if moe and not s.cpu_moe_layers:
        least = layers - _most(lambda n, graph: fits(replace(s, cpu_moe_layers=layers - n), graph), layers - 1)
        if least <= layers:
            yield f"fits with --n-cpu-moe {least}: the experts of {least} layers in host memory"
    whole = layers if s.gpu_layers is None or s.gpu_layers < 0 else min(s.gpu_layers, layers)
    held = _most(lambda n, graph: fits(replace(s, gpu_layers=n), graph), whole)
    if held >= 0:
        yield f"fits with -ngl {held}: {held} of {layers + 1} layers on the GPU"
    cells = _most(lambda n, graph: fits(replace(s, context_length=256 * (n + 1)), graph), context // 256 - 1)
    if cells >= 0:
        yield f"fits with -c {256 * (cells + 1)}, the largest context"


def _most(holds: Callable[[int, bool], bool], limit: int) -> int:
    """The largest n from 0 to `limit` of which `holds` is true, where it is up to some n; -1 where it is of none."""
    limit = most(lambda n: holds(n, False), limit)
    step = 1
    while limit >= 0 and not holds(limit, True):
        low = max(limit - step, -1)
        if low < 0 or holds(low, True):
            return most(lambda n: holds(n, True), limit - 1, low)
        limit, step = low, 2 * step
    return limit


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
