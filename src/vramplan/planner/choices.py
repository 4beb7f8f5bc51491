"""What a plan may choose, as short tables: ways to train and to serve, each with its cost in quality and what it gives up in words.

Costs order what comes out, the lower the better; they are an order of preference and measure nothing. Number formats are ordered as
llama.cpp's `tools/quantize` lists their loss of perplexity. What the user fixes stays fixed: a key that is set has that one choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ..scenario import Scenario
from .held import for_users
from .trying import Change

METHODS = {
    "full": (0, ""),
    "lora": (3, "adapters train in place of all weights"),
    "qlora": (5, "adapters train over a base in 4 bits"),
}
PRECISIONS = {"bf16-mixed": (0, ""), "bf16": (1, "weights and updates in pure bf16")}
OPTIMIZERS = {"adamw-fused": (0, ""), "adamw-8bit": (1, "optimizer states in 8 bits")}
LOSSES = ("fused", "chunked", "plain")
"""The first that the engine takes: they cost nothing."""
CHECKPOINTING = {"none": "", "full": "the forward pass runs twice"}
OFFLOADS: dict[tuple[str, ...], str] = {
    (): "",
    ("activations",): "activations go over the bus",
    ("parameters",): "weights and states in host memory, where the optimizer steps",
}
SHARDINGS = {"ddp": "", "zero2": "gradients and states are shared out", "fsdp": "weights are gathered layer by layer"}
WEIGHTS: Mapping[str, Mapping[str | None, tuple[int, str]]] = {
    "vllm": {None: (0, ""), "fp8": (1, "weights in 8 bits"), "awq": (4, "weights in 4 bits")},
    "llama.cpp": {
        "F16": (0, ""),
        "Q8_0": (1, "weights in 8 bits"),
        "Q6_K": (2, "weights in 6.6 bits"),
        "Q5_K_M": (3, "weights in about 5.7 bits"),
        "Q4_K_M": (4, "weights in about 4.9 bits"),
        "Q3_K_M": (7, "weights in about 3.9 bits"),
        "Q2_K": (9, "weights in about 3.3 bits"),
    },
}
CACHES = {None: (0, ""), "fp8": (1, "keys and values in 8 bits"), "q8_0": (1, "keys and values in 8 bits")}
LAYERS = 160
"""More than any model of the catalogue has."""
GLOBAL_BATCH = 16
"""Sequences of a step where none is asked for."""


ONE: Sequence[Change] = ({},)
"""No other size than as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A change with its cost in quality, and what it gives up in words; `hosted` where the host's memory is read in every pass.

    `sizes` are further changes of which the first that fits is taken: they need less and less memory.
    """

    change: Change
    cost: int = 0
    gives_up: tuple[str, ...] = ()
    hosted: bool = False
    sizes: Sequence[Change] = ONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What is searched: every `quality` with every `pace`."""

    quality: Sequence[Choice]
    pace: Sequence[Choice]

    @property
    def points(self) -> int:
        """Scenarios of the whole grid."""
        return len(self.quality) * sum(len(one.sizes) for one in self.pace)


def _choices(key: str, given: Any, table: Mapping[Any, Any]) -> list[Choice]:
    """The choices of one key, of which a given value leaves no other."""
    if given not in (None, ()):
        return [Choice(change={})]
    made = []
    for value, entry in table.items():
        cost, words = entry if isinstance(entry, tuple) else (0, entry)
        change = {key: value} if value not in (None, ()) else {}
        made.append(Choice(change=change, cost=cost, gives_up=(words,) if words else (), hosted=value == ("parameters",)))
    return made


def together(*parts: Sequence[Choice]) -> list[Choice]:
    """Every combination, the least cost first."""
    made = [
        Choice(
            change={key: value for one in combination for key, value in one.change.items()},
            cost=sum(one.cost for one in combination),
            gives_up=tuple(words for one in combination for words in one.gives_up),
            hosted=any(one.hosted for one in combination),
            sizes=next((one.sizes for one in combination if one.sizes is not ONE), ONE),
        )
        for combination in product(*parts)
    ]
    return sorted(made, key=lambda one: one.cost)


def training(asked: Scenario, losses: Sequence[str], batch: int) -> Space:
    """Ways to train with steps of `batch` sequences on each GPU; `losses` are those that the engine takes."""
    quality = [choice for method in _methods(asked) for choice in method]
    several = (asked.gpu_count or 1) > 1
    pace = together(
        [Choice(change={} if asked.loss or not losses else {"loss": losses[0]}, sizes=list(_sizes(asked, batch)))],
        _choices("checkpointing", asked.checkpointing, CHECKPOINTING),
        _choices("sharding", asked.sharding, SHARDINGS) if several else [Choice(change={})],
        _choices("offload", asked.offload, OFFLOADS),
    )
    return Space(quality=sorted(quality, key=lambda one: one.cost), pace=pace)


def _methods(asked: Scenario) -> Iterator[list[Choice]]:
    """Full training in its precisions and with its optimizers; adapters, whose states are small, without."""
    adapters = asked.lora is not None
    ways = (
        {"qlora": METHODS["qlora"]}
        if asked.quantization
        else {name: way for name, way in METHODS.items() if not adapters or name != "full"}
    )
    for method in _choices("method", asked.method, ways):
        if (asked.method or method.change.get("method")) == "full":
            yield together([method], _choices("precision", asked.precision, PRECISIONS), _choices("optimizer", asked.optimizer, OPTIMIZERS))
        else:
            yield [method]


def _sizes(asked: Scenario, batch: int) -> Iterator[Change]:
    """Micro-batches that divide `batch`, the largest first, with the passes that make up for the rest."""
    for micro in range(batch, 0, -1):
        passes = batch // micro
        fixed = (asked.micro_batch or micro, asked.gradient_accumulation or passes)
        if batch % micro == 0 and fixed == (micro, passes):
            yield {"micro_batch": micro, "gradient_accumulation": passes}


def serving(asked: Scenario, engine: str) -> Space:
    """Ways to serve with an engine."""
    caches: dict[Any, Any] = {name: CACHES[name] for name in ((None, "q8_0") if engine == "llama.cpp" else (None, "fp8"))}
    weights = [Choice(change={})] if engine not in WEIGHTS else _choices("weights", asked.weights, WEIGHTS[engine])
    quality = together(weights, _choices("kv_dtype", asked.kv_dtype, caches))
    run = {"engine": engine, **(for_users(asked, engine, asked.sequences) if asked.sequences else {})}
    pace = [Choice(change=run)]
    if engine in ("vllm", "sglang") and asked.eager is None:
        pace.append(Choice(change={**run, "eager": True}, gives_up=("no CUDA graphs",)))
    if engine == "llama.cpp" and asked.gpu_layers is None and asked.cpu_moe_layers is None:
        for key, numbers, words in (
            ("cpu_moe_layers", range(1, LAYERS), "experts of some layers on the processor"),
            ("gpu_layers", range(LAYERS - 1, -1, -1), "layers on the processor"),
        ):
            sizes = [{key: n} for n in numbers]
            pace.append(Choice(change=run, gives_up=(words,), hosted=True, sizes=sizes))
    return Space(quality=quality, pace=pace)
