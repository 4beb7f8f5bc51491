"""A cache pool that is a share of what is free once the engine has loaded, in blocks of tokens: TensorRT-LLM's and LMDeploy's rule.

It starts where the pool holds one sequence of the longest length and what runs beside it fits into what the share leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..catalog.gpus import Gpu
from ..errors import Unknown
from ..ledger import Item, Moment
from ..tape import Tape
from ..tensors import Cache
from ..units import gib
from .job import Account, Device, Job
from .lines import counted, text_caches

RUNNING = frozenset({Moment.PREFILL, Moment.DECODE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A rank of a pipeline's stage: what is there before the pool is sized, what comes after, and the bytes of a token in its layers."""

    before: list[Item]
    after: list[Item]
    token: int
    caches: list[Item]

    @property
    def items(self) -> list[Item]:
        return [*self.before, *self.after, *self.caches]


def request_items(tape: Tape, tokens: int, nbytes: Callable[[Cache], int], source: str) -> list[Item]:
    """The blocks of one sequence of `tokens` tokens; `nbytes` is what a token takes in one layer of a cache."""
    return [
        Item(
            path=("kv cache", "full attention", cache.name), nbytes=tokens * nbytes(cache) * len(cache.layers), alive=RUNNING,
            why=f"1 sequence × {counted(len(cache.layers), 'layer')} × {tokens:,} tokens × {nbytes(cache):,} B", source=source,
        )
        for cache in text_caches(tape)
    ]  # fmt: skip


def paged_only(job: Job, tape: Tape, name: str) -> None:
    """Raise Unknown for models whose cache is more than keys and values of tokens."""
    caches = text_caches(tape)
    if not caches or any(cache.side == "state" or cache.per == "sequence" or cache.stride > 1 for cache in caches):
        raise Unknown(f"{job.model.id}: recurrent states and compressed caches are not estimated for {name} by this version")


def fill(account: Account, stages: list[Stage], gpu: Gpu, *, fraction: float, block: int, context: int, ranks: int, name: str) -> None:
    """Sizes the pool by the rank with least left, and says what breaks."""
    pools = [max(int((gpu.usable - sum(item.nbytes for item in stage.before)) * fraction), 0) for stage in stages]
    tokens = min(pool // (stage.token * block) * block if stage.token else 1 << 62 for pool, stage in zip(pools, stages, strict=True))
    rooms = [_room(stage, pool, gpu.usable) for stage, pool in zip(stages, pools, strict=True)]
    peaks = [sum(item.nbytes for item in stage.items) for stage in stages]
    worst = min(range(len(stages)), key=lambda i: rooms[i] - peaks[i])
    account.items, account.room, account.rank = stages[worst].items, rooms[worst], worst * ranks
    account.others = [
        Device(rank=i * ranks, count=ranks, gpu=gpu, room=rooms[i], items=stage.items) for i, stage in enumerate(stages) if i != worst
    ]
    pool, stage = pools[worst], stages[worst]
    rest = sum(item.nbytes for item in [*stage.before, *stage.after])
    account.facts |= {"kv_tokens": tokens, "kv_cache": pool, "process": rest + pool}
    account.remarks.append(f"the pool of {gib(pool)} holds {tokens:,} tokens: {tokens / context:.1f} sequences of {context:,}")
    if pool < sum(item.nbytes for item in stage.caches):
        account.remarks.append(f"{name} would start with a shorter longest sequence, or not at all")
    elif rest + pool > gpu.usable:
        account.remarks.append("what is allocated after the pool exceeds what the pool leaves: give a smaller gpu_memory_utilization")


def _room(stage: Stage, pool: int, usable: int) -> int:
    """What the items may come to: the pool takes the place of one sequence's blocks, where what comes after it fits beside it."""
    need = sum(item.nbytes for item in stage.caches)
    peak = sum(item.nbytes for item in stage.items)
    spare = max(pool - need, 0)
    inside = peak + pool - need
    return min(inside, usable - spare) if peak + spare > usable else inside
