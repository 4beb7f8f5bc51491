"""What would make an engine start: flags that were tried, one by one, and the one line that names those that do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from ..errors import VramplanError
from .job import Account, Job

Change = tuple[str, dict[str, Any]]
"""A flag as the engine spells it, and what it is in a scenario."""


def starts(account: Account) -> bool:
    """Whether what it holds is within what the engine may take."""
    return account.room is not None and sum(item.nbytes for item in account.items) <= account.room


def advised(job: Job, account: Callable[[Job], Account], advice: Callable[[Job, Account, Callable[[Job], Account]], list[str]]) -> Account:
    """The engine's `account` of a job, with its `advice`, made when it is asked for, where it does not start."""
    made = account(job)
    if made.room is not None and not starts(made):
        made.advice = lambda: advice(job, made, account)
    return made


def told(job: Job, tried: Callable[[Job], Account], ways: Iterable[Iterable[Change]]) -> list[str]:
    """One line with the first flag of each of `ways` that does; the first way is the one that costs a user least."""
    found = [flag for way in ways if (flag := _first(job, tried, way))]
    if not found:
        return ["no single flag makes it start"]
    others = f" (or {', or '.join(found[1:])})" if len(found) > 1 else ""
    return [f"the smallest change that makes it start: {found[0]}{others}"]


def _first(job: Job, tried: Callable[[Job], Account], way: Iterable[Change]) -> str | None:
    return next((flag for flag, change in way if does(job, tried, change)), None)


def does(job: Job, tried: Callable[[Job], Account], change: dict[str, Any]) -> bool:
    """Whether it starts with a scenario changed so; what is refused does not."""
    try:
        return starts(tried(changed(job, change)))
    except VramplanError:
        return False


def changed(job: Job, change: dict[str, Any]) -> Job:
    """The job with its scenario changed, and its weights' format with that."""
    from ..formats import scheme

    weights = change.get("weights")
    form = scheme(weights, dtype=job.model.dtype) if weights else job.scheme
    return replace(job, scenario=replace(job.scenario, **change), scheme=form)


def quantised(job: Job) -> Iterator[Change]:
    """Weights in fp8, quantised while they load, where they are plain floats."""
    if job.scenario.weights in (None, "bf16", "fp16") and job.scheme.name in ("bf16", "fp16"):
        yield "--quantization fp8", {"weights": "fp8"}


def ranks(job: Job, flag: str) -> Iterator[Change]:
    """More tensor-parallel ranks, twice as many each time, to 16."""
    s = job.scenario
    first = s.tensor_parallel or (s.gpu_count or 1) // ((s.pipeline_parallel or 1) * (s.data_parallel or 1)) or 1
    yield from ((f"{flag} {first << n}", {"tensor_parallel": first << n, "gpu_count": None}) for n in range(1, 5) if first << n <= 16)
