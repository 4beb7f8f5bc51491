"""Remedies for a scenario that does not fit, each an entry of a table: a name, a class, what it gives up, and the changes of keys.

The classes, cheapest first: `free` costs nothing; `time` makes it slower; `quality` costs a little of what comes out; `more` is less of
what was wished for, or more hardware. Within a class the order of the table is the order in which a set prefers them. A remedy that the
engine refuses, or that is there already, drops out by itself; it need not know engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..scenario import Scenario
from .trying import Change

CLASSES = ("free", "time", "quality", "more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One way to need less memory. `changes` gives, for a scenario with all defaults filled in, its changes, the mildest first."""

    name: str
    kind: str
    gives_up: str
    task: str
    changes: Callable[[Scenario], Sequence[Change]]


def _when(held: bool, *changes: Change) -> Sequence[Change]:
    return changes if held else ()


def _smaller(key: str, now: int | None, least: int = 1, unit: int = 1) -> Sequence[Change]:
    """Every smaller multiple of `unit`, the largest first."""
    return [{key: n} for n in range((now or 0) // unit * unit, least - 1, -unit) if n != now]


def _fewer_at_once(s: Scenario) -> Sequence[Change]:
    batch, passes = s.micro_batch or 1, s.gradient_accumulation or 1
    return [{"micro_batch": n, "gradient_accumulation": passes * batch // n} for n in range(batch - 1, 0, -1) if passes * batch % n == 0]


def _rank(s: Scenario) -> Sequence[Change]:
    rank = (s.lora or {}).get("rank", 16)
    halves = [rank >> n for n in range(1, 10) if isinstance(rank, int) and rank >> n >= 4]
    return _when(s.method not in (None, "full"), *({"lora": {**(s.lora or {}), "rank": n}} for n in halves))


def _gpus(s: Scenario) -> Sequence[Change]:
    now = s.gpu_count or s.tensor_parallel or 1
    counts = [now << n for n in range(1, 7) if now << n <= 64]
    if s.task == "train":
        shared = s.sharding if s.sharding not in (None, "none", "ddp") else "fsdp"
        return [{"gpu_count": n, "sharding": shared} for n in counts]
    return [{"gpu_count": n, "tensor_parallel": None} for n in counts]


def _also(s: Scenario, what: str) -> Sequence[Change]:
    there = s.offload or ()
    return _when(what not in there, {"offload": (*there, what)})


def _quants(s: Scenario) -> Sequence[Change]:
    """Smaller weights of the engine's kind; nothing where a checkpoint is quantised already, but for GGUF's types."""
    ladder = GGUF if s.engine == "llama.cpp" else FLOAT_LADDER
    now = (s.weights or "").upper() if s.engine == "llama.cpp" else s.weights or ""
    if now in ladder:
        return [{"weights": name} for name in ladder[ladder.index(now) + 1 :]]
    return [{"weights": name} for name in ladder] if now.lower() in ("bf16", "fp16", "fp32", "f16") else ()


GGUF = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")
FLOAT_LADDER = ("fp8", "awq")
"""Number formats of weights, each with less than the one before it; what an engine does not load it refuses."""
MIXED = ("bf16-mixed", "bf16-master", "fp32", "fp16-mixed", "fp8-mixed")

REMEDIES: tuple[Remedy, ...] = (
    Remedy(
        name="fused loss", kind="free", task="train", gives_up="nothing: head and cross-entropy in one kernel, the same loss",
        changes=lambda s: _when(s.loss == "plain", {"loss": "fused"}),
    ),
    Remedy(
        name="flash attention", kind="free", task="train", gives_up="nothing: the same attention, never a whole matrix of scores",
        changes=lambda s: _when(s.attention == "eager", {"attention": "sdpa"}, {"attention": "flash"}),
    ),
    Remedy(
        name="flash attention", kind="free", task="infer", gives_up="nothing: the same attention, never a whole matrix of scores",
        changes=lambda s: [
            *_when(s.flash_attention is False, {"flash_attention": True}),
            *_when(s.attention == "eager", {"attention": "sdpa"}),
        ],
    ),
    Remedy(
        name="fused optimizer", kind="free", task="train", gives_up="nothing: the same step without temporaries of the states' size",
        changes=lambda s: _when(s.optimizer == "adamw", {"optimizer": "adamw-fused"}),
    ),
    Remedy(
        name="expandable segments", kind="free", task="train", gives_up="nothing: torch's allocator wastes less between blocks",
        changes=lambda s: _when(not s.expandable_segments, {"expandable_segments": True}),
    ),
    Remedy(
        name="double quantisation", kind="free", task="train", gives_up="next to nothing: the constants of nf4 in 8 bits",
        changes=lambda s: _when(s.method == "qlora" and not s.double_quant, {"double_quant": True}),
    ),
    Remedy(
        name="smaller micro-batch", kind="time", task="train", gives_up="speed: the same global batch in more passes",
        changes=_fewer_at_once,
    ),
    Remedy(
        name="checkpointing", kind="time", task="train", gives_up="speed: the forward pass runs a second time, about a third more work",
        changes=lambda s: _when(s.checkpointing != "full", {"checkpointing": "selective"}, {"checkpointing": "full"}),
    ),
    Remedy(
        name="step in backward", kind="time", task="train", gives_up="gradient clipping and accumulation: each weight is stepped at once",
        changes=lambda s: _when(not s.optimizer_in_backward and s.gradient_accumulation == 1, {"optimizer_in_backward": True}),
    ),
    Remedy(
        name="activations in host memory", kind="time", task="train", gives_up="speed: activations go over the bus and back",
        changes=lambda s: _also(s, "activations"),
    ),
    Remedy(
        name="sharded parameters", kind="time", task="train", gives_up="speed: weights are gathered layer by layer",
        changes=lambda s: _when((s.gpu_count or 1) > 1 and s.sharding in (None, "ddp", "zero1", "zero2"), {"sharding": "fsdp"}),
    ),
    Remedy(
        name="parameters and states in host memory", kind="time", task="train", gives_up="much speed: the optimizer steps on the processor",
        changes=lambda s: _also(s, "parameters"),
    ),
    Remedy(
        name="no CUDA graphs", kind="time", task="infer", gives_up="speed at small batches: kernels are launched one by one",
        changes=lambda s: _when(s.eager is False, {"eager": True}),
    ),
    Remedy(
        name="smaller prefill chunks", kind="time", task="infer", gives_up="some speed of long prompts",
        changes=lambda s: [{"max_batched_tokens": n} for n in (8192, 4096, 2048, 1024, 512) if n < (s.max_batched_tokens or 0)],
    ),
    Remedy(
        name="smaller -ub", kind="time", task="infer", gives_up="some speed of long prompts",
        changes=lambda s: [{"ubatch": n} for n in (512, 256, 128, 64) if n < (s.ubatch or 0)],
    ),
    Remedy(
        name="experts on the processor", kind="time", task="infer", gives_up="much speed: experts are read from host memory",
        changes=lambda s: [{"cpu_moe_layers": n} for n in range((s.cpu_moe_layers or 0) + 1, 129)],
    ),
    Remedy(
        name="layers on the processor", kind="time", task="infer", gives_up="much speed: layers are read from host memory",
        changes=lambda s: _when(s.engine == "llama.cpp", *_smaller("gpu_layers", 129 if s.gpu_layers in (None, -1) else s.gpu_layers, 0)),
    ),
    Remedy(
        name="8-bit optimizer", kind="quality", task="train", gives_up="little: AdamW's states in 8 bits, in blocks",
        changes=lambda s: _when((s.optimizer or "").startswith("adamw") and "8bit" not in (s.optimizer or ""), {"optimizer": "adamw-8bit"}),
    ),
    Remedy(
        name="weights in pure bf16", kind="quality", task="train", gives_up="small updates that bf16 rounds away",
        changes=lambda s: _when(s.precision in MIXED, {"precision": "bf16"}),
    ),
    Remedy(
        name="8-bit KV cache", kind="quality", task="infer", gives_up="little: keys and values in 8 bits",
        changes=lambda s: _when(s.kv_dtype in (None, "auto", "bf16", "fp16"), {"kv_dtype": "q8_0" if s.engine == "llama.cpp" else "fp8"}),
    ),
    Remedy(
        name="8-bit weights", kind="quality", task="infer", gives_up="little: weights in 8 bits",
        changes=lambda s: [change for change in _quants(s) if change["weights"] in ("Q8_0", "fp8")],
    ),
    Remedy(
        name="LoRA", kind="quality", task="train", gives_up="what only full fine-tuning learns: adapters train, the weights stay",
        changes=lambda s: _when(s.method == "full", {"method": "lora"}),
    ),
    Remedy(
        name="QLoRA", kind="quality", task="train", gives_up="a little more: LoRA over a base in 4 bits",
        changes=lambda s: _when(s.method in ("full", "lora"), {"method": "qlora"}),
    ),
    Remedy(
        name="smaller rank", kind="quality", task="train", gives_up="capacity of the adapters",
        changes=_rank,
    ),
    Remedy(
        name="smaller weights", kind="more", task="infer", gives_up="quality: weights in fewer bits",
        changes=_quants,
    ),
    Remedy(
        name="shorter sequences", kind="more", task="train", gives_up="tokens of each sequence",
        changes=lambda s: _smaller("sequence_length", s.sequence_length, 256, 128),
    ),
    Remedy(
        name="shorter context", kind="more", task="infer", gives_up="tokens of each sequence",
        changes=lambda s: _smaller("context_length", s.context_length, 512, 256),
    ),
    Remedy(
        name="fewer sequences", kind="more", task="infer", gives_up="sequences at once",
        changes=lambda s: _smaller("sequences", s.sequences),
    ),
    *(Remedy(name="more GPUs", kind="more", task=task, gives_up="money", changes=_gpus) for task in ("train", "infer")),
)  # fmt: skip


def of_task(task: str) -> Iterable[Remedy]:
    """The remedies for a task, the cheapest class first."""
    return sorted((one for one in REMEDIES if one.task == task), key=lambda one: CLASSES.index(one.kind))
