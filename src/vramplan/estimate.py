"""Estimate: the whole idea on one page.

A scenario names a model, a GPU and how the model is run. The model's family is a forward pass that we walk on shapes (the tape); the engine
turns what has a shape (weights, caches, working set) and what has none (context, graphs, workspaces) into line items; the ledger of those
items is the answer, of which the peak, the tree, the verdict and the JSON are views.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from .allocator import Event, Replay, replay
from .dim import Dim
from .engines import Account, Job, engine
from .engines.lines import cache_nbytes, kv_type, text_caches
from .errors import BadInput, Unknown
from .families import walk
from .formats import Scheme, is_gguf, scheme_from_config
from .formats import scheme as named_scheme
from .ledger import Ledger, Moment, ledger
from .scenario import NO_MODEL, Scenario, scenario
from .sources.model import Model
from .tape import Tape

if TYPE_CHECKING:
    from .catalog.gpus import Gpu
    from .formats.gguf_facts import ModelFacts


NOTHING = Ledger(())
FLOATS = ("bf16", "fp16", "fp32")


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

    `shares` has every kind of GPU, that one first; `host` is what lies in host memory.
    """

    scenario: Scenario
    model: Model
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

    @property
    def fits(self) -> bool | None:
        """Whether the peak is within what the engine may take of the GPU; None without a GPU."""
        if self.room is None or self.headroom is None or self.headroom < 0 or self.reserved is None:
            return None if self.headroom is None else self.headroom >= 0
        if self.reserved.max_reserved + self.outside <= self.room:
            return True
        return self.events is None or replay(self.events(), capacity=self.room - self.outside).out_of_memory_at is None

    @cached_property
    def reserved(self) -> Replay | None:
        """What torch's caching allocator comes to with its default settings, simulated; None where the engine does not tell its order."""
        return replay(self.events()) if self.events else None

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
        allocated = max(self.facts["peak_allocated"], self.reserved.max_allocated)
        return {"peak_allocated": allocated, "peak_reserved": reserved, "process": reserved + self.outside}

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
    found = _model(asked.model)
    gpu = _gpu(asked)
    if asked.task == "train":
        return _train(asked, found, gpu)
    if asked.images:
        raise Unknown("images: estimated in training; for serving this version counts text only, with the towers' weights")
    gguf = found.gguf or (asked.weights is not None and is_gguf(asked.weights))
    name = asked.engine or ("llama.cpp" if gguf else "vllm")
    if gguf and name == "transformers":
        raise Unknown(
            "engine 'transformers' dequantises GGUF files when it loads them: name the number format that you load with --weights"
        )
    if name == "llama.cpp" and not gguf and (asked.weights or "bf16").lower() not in (*FLOATS, "mxfp4"):
        raise BadInput(f"weights {asked.weights!r}: llama.cpp loads GGUF files; name one of their types, such as Q4_K_M")
    scheme = _scheme_of("F16", found) if _converted(name, asked, found) else _scheme(asked, found)
    draft = None if asked.draft_model in (None, *NO_MODEL) else _model(asked.draft_model or "")
    drafted = _scheme_of(asked.weights or "F16", draft) if draft and not draft.gguf and name == "llama.cpp" else None
    job = Job(engine=name, scenario=asked, model=found, gpu=gpu, scheme=scheme, draft=draft, draft_scheme=drafted)
    account = engine(name).account(job)
    return _answer(job, account, name)


def _train(asked: Scenario, model: Model, gpu: Gpu | None) -> Estimate:
    from .engines.train import framework

    name = asked.engine or "transformers"
    job = Job(engine=name, scenario=asked, model=model, gpu=gpu, scheme=named_scheme(model.dtype))
    return _answer(job, framework(name).account(job), name)


def _answer(job: Job, account: Account, name: str) -> Estimate:
    converted = _converted(name, job.scenario, job.model)
    own = not converted and (job.stored or (job.scenario.weights is None and _own_quantisation(job.model) is not None))
    filled: dict[str, Any] = {
        "engine": name,
        "weights": job.scenario.weights or (None if own else job.scheme.name),
        "kv_dtype": job.scenario.kv_dtype or "auto",
        **account.filled,
    }
    worst = Share(rank=account.rank, count=account.count, gpu=job.gpu, room=account.room, ledger=ledger(account.items))
    others = [Share(rank=d.rank, count=d.count, gpu=d.gpu, room=d.room, ledger=ledger(d.items)) for d in account.others]
    return Estimate(
        scenario=replace(job.scenario, **filled),
        model=job.model,
        gpu=job.gpu,
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


@lru_cache(maxsize=64)
def _named(model: str) -> Model:
    from .sources import resolve

    return resolve(model)


def _model(model: str | Mapping[str, object]) -> Model:
    if isinstance(model, str):
        return _named(model)
    from .sources import resolve

    return resolve(model)


def _gpu(asked: Scenario) -> Gpu | None:
    if asked.gpu is None:
        if asked.gpu_memory is None:
            return None
        from .catalog.gpus import anonymous_gpu

        return anonymous_gpu(asked.gpu_memory)
    from .catalog.gpus import find_gpu

    gpu = find_gpu(asked.gpu)
    return gpu if asked.gpu_memory is None else replace(gpu, capacity=asked.gpu_memory, usable=asked.gpu_memory)


def _scheme(asked: Scenario, model: Model) -> Scheme:
    """How the weights are stored: as the scenario says, as the checkpoint's own quantisation says, or in its dtype."""
    if asked.weights is not None:
        double = "-double" if asked.double_quant and asked.weights.lower() in ("nf4", "fp4") else ""
        return _scheme_of(asked.weights + double, model)
    own = _own_quantisation(model)
    if own is None:
        return named_scheme(model.named_format or model.dtype, dtype=model.dtype)
    if not isinstance(own, dict):
        raise BadInput(f"{model.id}: quantization_config must be an object")
    experts = {"expert_dtype": model.config["expert_dtype"]} if "expert_dtype" in model.config else {}
    return scheme_from_config({**experts, **own}, dtype=model.dtype)


@lru_cache(maxsize=64)
def _scheme_of(name: str, model: Model) -> Scheme:
    return named_scheme(name, dtype=model.dtype, facts=None if name in FLOATS else _facts(model))


def _converted(name: str, asked: Scenario, model: Model) -> bool:
    """Whether the engine `name` runs no checkpoint but what `convert_hf_to_gguf.py` makes of it: floats in 16 bits, MXFP4 as it is."""
    return name == "llama.cpp" and asked.weights is None and not model.gguf


def _own_quantisation(model: Model) -> object:
    """What the checkpoint's config says of its quantisation; None where it says nothing."""
    return next(
        (found for key in ("quantization_config", "quantization") for c in (model.config, model.text) if (found := c.get(key))), None
    )


@lru_cache(maxsize=64)
def _facts(model: Model) -> ModelFacts:
    """What llama.cpp's per-tensor rules ask of a model."""
    from .formats.gguf_facts import model_facts

    text = model.text

    def size(*names: str, default: int = 1) -> int:
        return next((n for name in names if isinstance(n := text.get(name), int) and n > 0), default)

    tape = walk(Tape(Dim(1, "sequences"), Dim(1, "tokens")), model.config)
    heads = size("num_attention_heads", "n_head", "num_heads", "n_heads")
    kv_heads = size("num_key_value_heads", "num_kv_heads", "n_head_kv", default=heads)
    own = _own_quantisation(model)
    first = any(cache.side == "k" and 0 in cache.layers for cache in text_caches(tape)) or not tape.caches
    return model_facts(
        tape.weights,
        heads=heads,
        kv_heads=kv_heads if first else 0,
        model_type=str(model.config.get("model_type")),
        qk_nope=size("qk_nope_head_dim", default=128),
        v_dim=size("v_head_dim", default=128),
        mxfp4_experts=isinstance(own, dict) and own.get("quant_method") == "mxfp4",
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
