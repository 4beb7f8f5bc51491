"""Expert parallelism: each rank has whole experts, an even share of them, and routes tokens to the others."""

from __future__ import annotations

from dataclasses import replace

from ..errors import BadInput
from ..tape import Tape


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
