"""What would make it fit, as flags: the smallest --n-cpu-moe, the largest -ngl, the largest -c, each by bisection over whole accounts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from ..scenario import Scenario


def advice(s: Scenario, fits: Callable[[Scenario], bool], *, layers: int, context: int, moe: bool) -> Iterator[str]:
    """Flags with which a scenario fits that does not; `layers` of the model, `context` tokens asked for."""
    if moe and not s.cpu_moe_layers:
        least = most(lambda n: not fits(replace(s, cpu_moe_layers=n)), layers) + 1
        if least <= layers:
            yield f"fits with --n-cpu-moe {least}: the experts of {least} layers in host memory"
    held = most(lambda n: fits(replace(s, gpu_layers=n)), layers if s.gpu_layers is None or s.gpu_layers < 0 else s.gpu_layers)
    if held >= 0:
        yield f"fits with -ngl {held}: {held} of {layers + 1} layers on the GPU"
    cells = most(lambda n: fits(replace(s, context_length=256 * (n + 1))), context // 256 - 1)
    if cells >= 0:
        yield f"fits with -c {256 * (cells + 1)}, the largest context"


def most(holds: Callable[[int], bool], limit: int) -> int:
    """The largest n from 0 to `limit` of which `holds` is true, where it is up to some n; -1 where it is of none."""
    low, high = -1, limit
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low
