"""Estimate: the whole idea on one page.

A scenario names a model, a GPU and how the model is run. The model's family is a forward pass that we walk on shapes (the tape); the engine
turns what has a shape (weights, caches, working set) and what has none (context, graphs, workspaces) into line items; the ledger of those
items is the answer, of which the peak, the tree, the verdict and the JSON are views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from .allocator import Event, Replay, replay
from .engines import Account, Job, engine
from .engines.lines import cache_nbytes, kv_type, text_caches
from .errors import Unknown
from .formats import scheme as named_scheme
from .ledger import Ledger, Moment, ledger
from .named import counted, engine_of, gpus_of, is_converted, model_of, own_quantisation, scheme_of, stored_as
from .scenario import NO_MODEL, Scenario, scenario
from .sources.model import Model
from .tape import Tape

if TYPE_CHECKING:
    from .catalog.gpus import Gpu
    from .speed import Speed


NOTHING = Ledger(())


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one kind of GPU holds: that of number `rank`, and `count` alike; `room` is what the engine may take, None without a GPU."""

    rank: int
    count: int
    gpu: Gpu | None
    room: int | None
    ledger: Ledger

    @property
    def headroom(self) -> int | None:
        """Bytes that are left at the peak; negative where they are missing; None without a GPU."""
        return None if self.room is None else self.room - self.ledger.peak()[1]


@dataclass(frozen=True)
class Estimate:
    """The answer: a ledger for the GPU that breaks first, the scenario with every default filled in, and what was assumed.

    `shares` has every kind of GPU, that one first; `host` is what lies in host memory; `job` and `tape` are what the engine was asked and
    the pass that it was answered by.
    """

    scenario: Scenario
    model: Model
    job: Job
    tape: Tape
    gpu: Gpu | None
    ledger: Ledger
    room: int | None
    facts: Mapping[str, int]
    assumptions: tuple[str, ...]
    told: tuple[str, ...]
    events: Callable[[], Sequence[Event]] | None = None
    outside: int = 0
    shares: tuple[Share, ...] = ()
    host: Ledger = NOTHING
    advice: Callable[[], Sequence[str]] | None = None

    @cached_property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know beside the numbers, and what would make it fit where the engine tells."""
        return (*self.told, *(self.advice() if self.advice else ()))

    @cached_property
    def peak(self) -> tuple[Moment, int]:
        """The moment of the peak and its bytes."""
        return self.ledger.peak()

    @property
    def headroom(self) -> int | None:
        """Bytes that the engine may take and does not need at the peak; negative where they are missing; None without a GPU."""
        return None if self.room is None else self.room - self.peak[1]

    @cached_property
    def fits(self) -> bool | None:
        """Whether the peak is within what the engine may take of the GPU; None without a GPU."""
        if self.room is None or self.headroom is None or self.headroom < 0 or self.reserved is None:
            return None if self.headroom is None else self.headroom >= 0
        return self.reserved.max_reserved + self.outside <= self.room or self.confined is None or self.confined.out_of_memory_at is None

    @cached_property
    def likelihood(self) -> float | None:
        """The chance, from 0 to 1, that it fits, by the errors that estimates of its kind were measured to have; None without a GPU."""
        if self.room is None:
            return None
        from .likelihood import likelihood

        need = self.peak[1] if self.fits or self.peak[1] > self.room else max(self.quantities["process"], self.room)
        several = sum(share.count for share in self.shares) > 1
        return likelihood(need, self.room, task=self.scenario.task, engine=str(self.scenario.engine), several=several)

    @cached_property
    def reserved(self) -> Replay | None:
        """What torch's caching allocator comes to, simulated; None where the engine does not tell its order."""
        return self._replayed(self.events) if self.events else None

    @cached_property
    def confined(self) -> Replay | None:
        """The same on a GPU of this size: where it is full, the allocator gives back what it has cached, and asks again."""
        if self.room is None or self.events is None:
            return None
        return self._replayed(self.events, self.room - self.outside)

    def _replayed(self, events: Callable[[], Sequence[Event]], capacity: int | None = None) -> Replay:
        return replay(events(), capacity=capacity, expandable=bool(self.scenario.expandable_segments))

    @cached_property
    def quantities(self) -> Mapping[str, int]:
        """Bytes and counts under the names of the machine interface."""
        moment = self.peak[0]
        return {
            "weights": self.ledger.total("weights", moment=moment),
            "kv_cache": self.ledger.total("kv cache", moment=moment),
            **self.facts,
            **self._from_the_allocator(),
        }

    def _from_the_allocator(self) -> Mapping[str, int]:
        """What torch counts as allocated, with the remainders of blocks that it does not split, and as reserved; and the whole process."""
        if self.reserved is None:
            return {}
        reserved = self.reserved.max_reserved
        if self.room is not None and reserved + self.outside > self.room and self.confined and self.confined.out_of_memory_at is None:
            reserved = self.confined.max_reserved
        allocated = max(self.facts["peak_allocated"], self.reserved.max_allocated)
        return {"peak_allocated": allocated, "peak_reserved": reserved, "process": reserved + self.outside}

    @cached_property
    def speed(self) -> Speed | None:
        """How fast it runs; None without a GPU, or where that is not known (`vramplan.speed.told` raises the reason)."""
        from .speed import speed

        return speed(self)

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON-ready data."""
        from .report.json import to_dict

        return to_dict(self)

    def __str__(self) -> str:
        from .report.text import render

        return render(self)

    def _repr_html_(self) -> str:
        from .report.html import render

        return render(self)


def estimate(model: str | Mapping[str, object] | Scenario, **keys: object) -> Estimate:
    """Estimate a scenario, given as its keys: `estimate("meta-llama/Llama-3.1-8B", gpu="rtx-4090", context_length=8192)`.

    Raises BadInput for wrong input, NotFound for unknown names, Unknown for what is not estimated.
    """
    asked = model if isinstance(model, Scenario) else scenario({"model": model, **keys})
    if asked.gpu == "auto":
        from .sources.machine import here

        asked = here(asked)
    found = model_of(asked.model)
    gpus = gpus_of(asked)
    gpu = gpus[0] if gpus else None
    if asked.task == "train":
        if len(gpus) > 1:
            raise Unknown(f"gpu {asked.gpu}: GPUs of several kinds are not estimated in training by this version")
        return _train(asked, found, gpu)
    if asked.images:
        raise Unknown("images: estimated in training; for serving this version counts text only, with the towers' weights")
    name = engine_of(asked, found)
    scheme = scheme_of("F16", found) if is_converted(name, asked, found) else stored_as(asked, found)
    draft = None if asked.draft_model in (None, *NO_MODEL) else model_of(asked.draft_model or "")
    drafted = scheme_of(asked.weights or "F16", draft) if draft and not draft.gguf and name == "llama.cpp" else None
    asked = counted(asked, gpus, name)
    job = Job(engine=name, scenario=asked, model=found, gpu=gpu, gpus=gpus, scheme=scheme, draft=draft, draft_scheme=drafted)
    account = engine(name).account(job)
    return _answer(job, account, name)


def _train(asked: Scenario, model: Model, gpu: Gpu | None) -> Estimate:
    from .engines.train import framework

    name = asked.engine or "transformers"
    job = Job(engine=name, scenario=asked, model=model, gpu=gpu, scheme=named_scheme(model.dtype))
    return _answer(job, framework(name).account(job), name)


def _answer(job: Job, account: Account, name: str) -> Estimate:
    converted = is_converted(name, job.scenario, job.model)
    own = not converted and (job.stored or (job.scenario.weights is None and own_quantisation(job.model) is not None))
    filled: dict[str, Any] = {
        "engine": name,
        "weights": job.scenario.weights or (None if own else job.scheme.name),
        "kv_dtype": job.scenario.kv_dtype or "auto",
        **account.filled,
    }
    worst = Share(rank=account.rank, count=account.count, gpu=job.gpu_at(account.rank), room=account.room, ledger=ledger(account.items))
    others = [Share(rank=d.rank, count=d.count, gpu=d.gpu, room=d.room, ledger=ledger(d.items)) for d in account.others]
    return Estimate(
        scenario=replace(job.scenario, **filled),
        model=job.model,
        job=job,
        tape=account.tape,
        gpu=worst.gpu,
        ledger=worst.ledger,
        room=account.room,
        shares=(worst, *others),
        host=ledger(account.host),
        facts={**_counts(account.tape, job), **account.facts},
        assumptions=(
            *account.assumptions,
            *(["no GGUF type named: the checkpoint as converted, in 16 bits (F16)"] if converted else []),
            *([f"weights as the checkpoint stores them, {job.scheme.name}"] if own and not job.stored else []),
            *([job.scheme.note] if job.scheme.note else []),
            *_unloaded(job.model),
            *job.model.notes,
        ),
        told=tuple(account.remarks),
        advice=account.advice,
        events=account.events,
        outside=account.outside,
    )


def _counts(tape: Tape, job: Job) -> dict[str, int]:
    """What is counted rather than held: parameters, and what one more token adds to the cache while no window is full."""
    per_token = 0
    for cache in text_caches(tape):
        if cache.per == "token":
            dtype = kv_type(job.scenario.kv_dtype, cache.side, job.kv_default)
            per_token += cache_nbytes(cache, cache.stride, dtype) // cache.stride
    return {"parameters": tape.parameters, "active_parameters": tape.active_parameters, "kv_bytes_per_token": per_token}


def _unloaded(model: Model) -> list[str]:
    return [f"multi-token-prediction layers in the checkpoint, not loaded: {model.mtp_layers}"] if model.mtp_layers else []
