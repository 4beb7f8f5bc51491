"""Experts over ranks: each has whole ones, an even share, and routes tokens to the others; or a slice of every one."""

from __future__ import annotations

from dataclasses import replace

from ..errors import BadInput
from ..tape import Tape
from .tensor import tensor_parallel


def expert_parallel(tape: Tape, whole: Tape, degree: int) -> Tape:
    """`tape` with whole experts of `whole` (before tensor parallelism), as many as one of `degree` ranks holds: ceil(experts / degree).

    Raises BadInput for a model without experts. Source: determine_expert_map, vLLM 0.21 fused_moe/layer.py.
    """
    if not any(weight.kind == "experts" for weight in whole.weights):
        raise BadInput(f"expert_parallel {degree}: the model has no experts")
    weights = [
        replace(before, copies=-(-before.copies // degree)) if before.kind == "experts" else after
        for before, after in zip(whole.weights, tape.weights, strict=True)
    ]
    return replace(tape, weights=weights)


def spread_experts(tape: Tape, degree: int) -> Tape:
    """The tape with an even share of whole experts, in its ops too; an adapter for all of a rank's is on each.

    Raises BadInput where the experts do not fall evenly to `degree` ranks.
    """
    if degree == 1:
        return tape
    experts = [weight for weight in tape.weights if weight.kind == "experts" and weight.part != "adapters"]
    counts = {weight.copies for weight in experts}
    if not counts:
        raise BadInput(f"expert_parallel {degree}: the model has no experts")
    for count in counts:
        if count % degree:
            near = min((n for n in range(1, count + 1) if count % n == 0), key=lambda n: abs(n - degree))
            raise BadInput(f"expert_parallel {degree}: {count} experts do not divide by it; the nearest is {near}")
    mine = {id(w): w for w in tape.weights} | {id(w): replace(w, copies=w.copies // degree) for w in experts}
    ops = [replace(op, weights=tuple(mine.get(id(w), w) for w in op.weights)) for op in tape.ops]
    return replace(tape, weights=list(mine.values()), ops=ops)


def expert_slices(tape: Tape, whole: Tape, degree: int) -> Tape:
    """`tape` with a slice of every expert of `whole`, one of `degree`: tensor parallelism over the ranks of all data-parallel replicas.

    Source: FusedMoEParallelConfig.make, vLLM 0.21 fused_moe/config.py (without expert parallelism the ranks are flattened).
    """
    sliced = tensor_parallel(whole, degree)
    weights = [thin if thin.kind == "experts" else mine for mine, thin in zip(tape.weights, sliced.weights, strict=True)]
    return replace(tape, weights=weights)
