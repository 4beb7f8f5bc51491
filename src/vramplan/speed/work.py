"""What a pass reads and computes, from the tape: weights by part, experts that are touched, caches at a length, operations.

Nothing here knows a GPU. Activations are left out in serving, whose kernels are fused: at one token they are a thousandth of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from ..dim import Dim
from ..engines.job import Job
from ..engines.lines import cache_nbytes, kv_type, text_caches
from ..families import walk
from ..formats import Scheme, weights_nbytes
from ..kernels import Kernels
from ..ledger import Ledger, Moment
from ..parallel.tensor import tensor_parallel
from ..sources.model import Model
from ..tape import Tape
from ..tensors import Cache, Op, Weight

SERVED = Kernels(attention="flash", mla="absorbed", frames="freed", recurrence="fused")


class Walked(NamedTuple):
    """One rank's pass of one sequence: its operations, its layers, the width of what goes from one to the next, its weights and caches."""

    flops: float
    layers: int
    hidden: int
    weights: tuple[Weight, ...]
    caches: tuple[Cache, ...]


def touched(experts: int, chosen: int, tokens: int) -> float:
    """Distinct experts that `tokens` read, each `chosen` of `experts` by a router that prefers none: E · (1 − (1 − k/E)^b).

    >>> touched(128, 8, 1), round(touched(128, 8, 32), 1)
    (8.0, 111.8)
    """
    return experts * (1 - (1 - chosen / experts) ** tokens)


@lru_cache(maxsize=256)
def walked(model: Model, tokens: int, past: int, group: int = 1) -> Walked:
    """One sequence of `tokens` new tokens after `past` others, as serving engines run it on one of `group` tensor-parallel ranks."""
    tape = walk(Tape(Dim(1, "sequences"), Dim(tokens, "tokens"), past, 2, SERVED), model.config, model.id)
    tape = tensor_parallel(tape, group) if group > 1 else tape
    layers = len({i for weight in tape.weights if weight.tower is None for i in weight.layers or ()})
    hidden = next((int(weight.shape[-1]) for weight in tape.weights if weight.kind == "embed" and weight.tower is None), 0)
    return Walked(sum(flops(op, tokens, past) for op in tape.ops), layers, hidden, tuple(tape.weights), tuple(text_caches(tape)))


def is_fused_attention(op: Op) -> bool:
    """Whether `op` is attention in one kernel, which writes its log-sum-exp too."""
    return not op.weights and op.flops > 0 and len(op.writes) > 1


def flops(op: Op, tokens: int, past: int) -> float:
    """Operations of `op` in all its layers; of fused attention those of the keys that a token sees, the other half left out."""
    if past or tokens == 1 or not is_fused_attention(op):
        return op.flops * op.repeats
    q, out = op.reads[0].shape, op.writes[0].shape
    seen = min(op.flops / (2 * int(q[0]) * int(q[1]) * (int(q[-1]) + int(out[-1]))), tokens)
    return op.flops * op.repeats * (1 - (seen - 1) / (2 * tokens))


def read_shares(weights: Iterable[Weight], scheme: Scheme, tokens: int) -> dict[str, float]:
    """Of each part of the weights the share that a pass over `tokens` reads.

    Of experts those that are touched; of an embedding a row for each token (nothing, beside the rest), or all of it where it is the head's
    matrix too; nothing of a tower for another modality.
    """
    whole: dict[str, float] = {}
    read: dict[str, float] = {}
    for share in weights_nbytes(weights, scheme):
        weight = share.weight
        part = 1.0
        if weight.tower or (weight.kind == "embed" and not weight.tied) or weight.kind == "buffer":
            part = 0.0
        elif weight.copies > weight.active:
            part = touched(weight.copies, weight.active, tokens) / weight.copies
        whole[weight.part] = whole.get(weight.part, 0) + share.nbytes
        read[weight.part] = read.get(weight.part, 0) + share.nbytes * part
    return {part: read[part] / nbytes if nbytes else 0.0 for part, nbytes in whole.items()}


def weight_bytes(held: Ledger, shares: Mapping[str, float]) -> float:
    """Bytes of the weights in `held` that a pass reads; parts that no tape names are read whole, what lies beside the weights is not."""
    items = (item for item in held.items if item.path[0] == "weights" and len(item.path) > 2 and Moment.DECODE in item.alive)
    return sum(item.nbytes * shares.get(item.path[1], 1.0) for item in items)


def cache_bytes(job: Job, caches: Iterable[Cache], depth: int) -> int:
    """Bytes of one sequence's caches that a token reads when it has `depth` tokens; a state is written too."""
    total = 0
    for cache in caches:
        state = cache.side == "state"
        dtype = (cache.dtype or job.kv_default) if state else kv_type(job.scenario.kv_dtype, cache.side, job.kv_default)
        kept = cache.kept(max(depth, 1))
        total += cache_nbytes(cache, kept, dtype) * (2 if state else 1) if kept else 0
    return total
