"""What would make it fit, as flags: another -ts, the smallest --n-cpu-moe, the largest -ngl, the largest -c.

Each is found twice: first without compute buffers, whose graphs are slow, and from there on, which is near, with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ..bisection import most_twice
from ..scenario import Scenario
from .llama_cpp_placement import Placement

Missing = Callable[[Scenario, bool], Sequence[int]]
"""Bytes that each GPU lacks (negative: has left) in a scenario, with or (False) without its compute buffers."""


def advice(s: Scenario, missing: Missing, *, where: Placement, context: int, moe: bool) -> Iterator[str]:
    """Flags with which a scenario fits that does not; `where` its layers are, `context` tokens asked for."""

    def fits(other: Scenario, graph: bool) -> bool:
        return max(missing(other, graph)) <= 0

    layers = where.layers
    shares = split(s, missing, where)
    if shares:
        yield f"fits with -ts {','.join(map(str, shares))}: layers of each GPU, the output counted as one"
    if moe and not s.cpu_moe_layers:
        least = layers - most_twice(lambda n, graph: fits(replace(s, cpu_moe_layers=layers - n), graph), layers - 1)
        if least <= layers:
            yield f"fits with --n-cpu-moe {least}: the experts of {least} layers in host memory"
    whole = layers if s.gpu_layers is None or s.gpu_layers < 0 else min(s.gpu_layers, layers)
    held = most_twice(lambda n, graph: fits(replace(s, gpu_layers=n), graph), whole)
    if held >= 0:
        yield f"fits with -ngl {held}: {held} of {layers + 1} layers on the GPU"
    cells = most_twice(lambda n, graph: fits(replace(s, context_length=256 * (n + 1)), graph), context // 256 - 1)
    if cells >= 0:
        yield f"fits with -c {256 * (cells + 1)}, the largest context"


def split(s: Scenario, missing: Missing, where: Placement) -> tuple[int, ...]:
    """Layers of each GPU with which all of them fit, moved one by one from the fullest to the emptiest; nothing where none are found."""
    shares = [where.devices.count(gpu) for gpu in range(where.gpus)]
    if where.gpus < 2 or s.split_mode == "none" or sum(missing(s, True)) > 0:
        return ()
    for graph in (False, True):
        seen = set()
        while tuple(shares) not in seen:
            seen.add(tuple(shares))
            lack = missing(replace(s, tensor_split=tuple(map(float, shares))), graph)
            if max(lack) <= 0:
                break
            shares[lack.index(max(lack))] -= 1
            shares[lack.index(min(lack))] += 1
            if min(shares) < 0:
                return ()
        else:
            return ()
    return tuple(shares)
