"""What would make SGLang start, and run, where it does not: the least change of each flag, every one tried by a whole account."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .advice import Change, does, quantised, ranks, told
from .job import Account, Job


def advice(job: Job, made: Account, tried: Callable[[Job], Account]) -> list[str]:
    """The line with the flags with which it does, the one that costs a user least first."""
    return told(
        job,
        tried,
        (_share(made), _chunk(made), _cache(job), _length(job, made, tried), _eager(made), quantised(job), ranks(job, "--tp-size")),
    )


def _share(made: Account) -> Iterator[Change]:
    """Nearest first, in hundredths: larger for the pools, smaller for what runs beside them."""
    now = float(str(made.filled["gpu_memory_utilization"]))
    near = sorted((n / 100 for n in range(40, 99)), key=lambda share: abs(share - now))
    yield from ((f"--mem-fraction-static {share:g}", {"gpu_memory_utilization": share}) for share in near)


def _chunk(made: Account) -> Iterator[Change]:
    now = int(str(made.filled["max_batched_tokens"]))
    yield from ((f"--chunked-prefill-size {n}", {"max_batched_tokens": n}) for n in (8192, 4096, 2048, 1024, 512) if n < now)


def _cache(job: Job) -> Iterator[Change]:
    if job.scenario.kv_dtype in (None, "auto"):
        yield "--kv-cache-dtype fp8_e4m3", {"kv_dtype": "fp8"}


def _length(job: Job, made: Account, tried: Callable[[Job], Account]) -> Iterator[Change]:
    """The longest sequence that starts, by bisection."""
    low, high = 0, int(str(made.filled["context_length"]))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if does(job, tried, {"context_length": middle}) else (low, middle - 1)
    if low:
        yield f"--context-length {low}", {"context_length": low}


def _eager(made: Account) -> Iterator[Change]:
    if not made.filled["eager"]:
        yield "--disable-cuda-graph", {"eager": True}
