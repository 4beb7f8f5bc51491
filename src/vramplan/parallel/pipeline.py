"""Pipeline parallelism: which layers a stage has."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import replace

from ..errors import BadInput
from ..tape import Tape
from ..tensors import Weight


def layers_of(stage: int, stages: int, layers: int) -> range:
    """The layers of one stage: as even as possible, the rest from the last stage but one on backwards.

    Source: get_pp_indices, vLLM 0.21 distributed/utils.py ("the last partition excluded, since it often has an additional norm layer").

    >>> [len(layers_of(stage, 4, 34)) for stage in range(4)]
    [8, 9, 9, 8]
    """
    share, rest = divmod(layers, stages)
    counts = [share] * stages
    for i in range(2, rest + 2):
        counts[-i] += 1
    first = sum(counts[:stage])
    return range(first, first + counts[stage])


def layers_from_the_end(stage: int, stages: int, layers: int) -> range:
    """The layers of one stage where the last stages have one more each.

    Source: get_pp_indices, SGLang 0.5.6 distributed/utils.py ("the last N partitions will have one extra layer, where N = remainder").

    >>> [len(layers_from_the_end(stage, 4, 34)) for stage in range(4)]
    [8, 8, 9, 9]
    """
    share, rest = divmod(layers, stages)
    plain = stages - rest
    first = stage * share + max(stage - plain, 0)
    return range(first, first + share + (stage >= plain))


def pipeline_stage(tape: Tape, stage: int, stages: int, layers: Callable[[int, int, int], range] = layers_of) -> Tape:
    """The weights and caches of one of `stages`: embeddings on the first, the final norm and the head on the last (a tied one on both).

    The ops stay those of the whole pass, whose layers run one at a time. Raises BadInput where there are fewer layers than stages.
    """
    depth = max((max(w.layers) + 1 for w in tape.weights if w.layers and not w.tower), default=0)
    if depth < stages:
        raise BadInput(f"pipeline_parallel {stages}: the model has {depth} layers")

    def belongs(weight: Weight) -> bool:
        return _belongs(weight.kind in ("embed",) or bool(weight.tower), weight.tied, stage, stages)

    mine = layers(stage, stages, depth)
    return part_of(tape, mine, belongs, mine)


def part_of(tape: Tape, layers: Container[int], belongs: Callable[[Weight], bool], cached: Container[int]) -> Tape:
    """The weights of `layers`, those outside the layers that `belong` to them, and the caches of the layers `cached`; all ops."""
    weights = []
    for weight in tape.weights:
        if weight.layers is not None and not weight.tower:
            own = tuple(i for i in weight.layers if i in layers)
            weights += [replace(weight, layers=own)] if own else []
        elif belongs(weight):
            weights.append(weight)
    caches = [replace(c, layers=own) for c in tape.caches if (own := tuple(i for i in c.layers if i in cached))]
    return replace(tape, weights=weights, caches=caches)


def _belongs(first: bool, tied: bool, stage: int, stages: int) -> bool:
    """Whether what is outside the layers is on this stage."""
    if first:
        return stage == 0 or (tied and stage == stages - 1)
    return stage == stages - 1
