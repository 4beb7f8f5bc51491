"""What would make vLLM start where it does not: the least change of each flag, every one tried by a whole account."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil

from .advice import Change, quantised, ranks, told
from .job import Account, Job

MOST = 0.98
"""The largest share of a GPU that is advised: graphs and fragments need some beside it."""


def advice(job: Job, made: Account, tried: Callable[[Job], Account]) -> list[str]:
    """The line with the flags with which it starts, the one that costs a user least first."""
    ways = (
        _share(job, made),
        _sequences(made),
        _cache(job),
        _length(made),
        _eager(made),
        quantised(job),
        ranks(job, "--tensor-parallel-size"),
    )
    return told(job, tried, ways)


def _missing(made: Account) -> int:
    return sum(item.nbytes for item in made.items) - (made.room or 0)


def _share(job: Job, made: Account) -> Iterator[Change]:
    """The budget grows with the share as what is missing does."""
    share = float(str(made.filled["gpu_memory_utilization"]))
    yield from ((f"--gpu-memory-utilization {n / 100:g}", {"gpu_memory_utilization": n / 100}) for n in range(int(share * 100), 97, -1))
    more = ceil(round((share + _missing(made) / (job.gpu.usable if job.gpu else 1)) * 100, 6)) / 100
    if more <= MOST:
        yield f"--gpu-memory-utilization {more:g}", {"gpu_memory_utilization": more}


def _sequences(made: Account) -> Iterator[Change]:
    """Half as many each time, to 16."""
    now = int(str(made.filled["sequences"]))
    yield from ((f"--max-num-seqs {n}", {"sequences": n}) for n in (512, 256, 128, 64, 32, 16) if n < now)


def _cache(job: Job) -> Iterator[Change]:
    if job.scenario.kv_dtype in (None, "auto"):
        yield "--kv-cache-dtype fp8", {"kv_dtype": "fp8"}


def _length(made: Account) -> Iterator[Change]:
    longest = made.facts.get("longest_context", 0)
    if longest:
        yield f"--max-model-len {longest}", {"context_length": longest}


def _eager(made: Account) -> Iterator[Change]:
    if not made.filled["eager"]:
        yield "--enforce-eager", {"eager": True}
