"""Scenario: every choice that a user has, with its help text, validated once. The command line, the JSON and the answer all come from here.

A field's `metadata` says what it means, how a value is read and which engines or tasks it is for; `None` means that the user left it to
the engine's default. Nothing here knows a formula.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal

from .errors import BadInput, nearest
from .units import parse_size

TASKS = ("infer", "train")
ENGINES = {
    "infer": ("vllm", "sglang", "llama.cpp", "transformers", "tensorrt-llm", "mlx", "exllamav2", "exllamav3", "lmdeploy", "litgpt"),
    "train": ("transformers", "torchtune", "litgpt", "unsloth", "torchtitan", "megatron"),
}


def _choice(*allowed: str) -> Callable[[str, object], str]:
    def read(key: str, value: object) -> str:
        if not isinstance(value, str) or value.lower() not in allowed:
            close = nearest(value, allowed) if isinstance(value, str) else ""
            raise BadInput(f"{key} {_short(value)}: must be one of {', '.join(allowed)}{close}")
        return value.lower()

    return read


def _integer(least: int = 1, most: int = 2**31 - 1) -> Callable[[str, object], int]:
    def read(key: str, value: object) -> int:
        if isinstance(value, str):
            text = value.strip().replace(",", "").replace("_", "").lower()
            scale = 1024 if text.endswith("k") else 1
            digits = text.removesuffix("k")
            value = int(digits) * scale if digits.lstrip("-").isascii() and digits.lstrip("-").isdigit() and len(digits) < 12 else value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise BadInput(f"{key} {_short(value)}: must be an integer from {least} to {most}")
        return value

    return read


def _number(low: float, high: float) -> Callable[[str, object], float]:
    def read(key: str, value: object) -> float:
        try:
            number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
        except (ValueError, OverflowError):
            number = None
        if number is None or not low < number <= high:
            raise BadInput(f"{key} {_short(value)}: must be a number above {low:g} and at most {high:g}")
        return number

    return read


def _flag(key: str, value: object) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "false", "on", "off", "yes", "no"):
        return value.lower() in ("true", "on", "yes")
    if not isinstance(value, bool):
        raise BadInput(f"{key} {_short(value)}: must be true or false")
    return value


def _text(key: str, value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip() or len(value) > 4096:
        raise BadInput(f"{key} {_short(value)}: must be a short text")
    return value.strip()


def _texts(*allowed: str) -> Callable[[str, object], tuple[str, ...]]:
    def read(key: str, value: object) -> tuple[str, ...]:
        entries = value.split(",") if isinstance(value, str) else value
        if not isinstance(entries, list | tuple) or len(entries) > 10_000:
            raise BadInput(f"{key} {_short(value)}: must be a list")
        return tuple(_choice(*allowed)(key, entry) if allowed else _text(key, entry) for entry in entries)

    return read


def _numbers(key: str, value: object) -> tuple[float, ...]:
    entries = value.split(",") if isinstance(value, str) else value
    if not isinstance(entries, list | tuple) or len(entries) > 64:
        raise BadInput(f"{key} {_short(value)}: must be a list of numbers, such as 3,1")
    return tuple(_number(-1e-9, 1e9)(key, entry) for entry in entries)


def _pixels(key: str, value: object) -> tuple[int, int]:
    """Height and width, from `"896"` or `"1024x768"`, which is wide and then high."""
    sides = [side.strip() for side in str(value).lower().split("x")]
    if isinstance(value, bool) or len(sides) > 2 or not all(side.isascii() and side.isdigit() and 0 < len(side) < 6 for side in sides):
        raise BadInput(f"{key} {_short(value)}: must be pixels, such as 896, or width and height as 1024x768")
    width, height = int(sides[0]), int(sides[-1])
    if not (1 <= width <= 65536 and 1 <= height <= 65536):
        raise BadInput(f"{key} {_short(value)}: must be from 1 to 65536 pixels")
    return height, width


def _size(key: str, value: object) -> int:
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise BadInput(f"{key} {_short(value)}: must be a size such as 24GiB")
    try:
        return parse_size(value)
    except BadInput as error:
        raise BadInput(f"{key}: {error}") from None


def _model(key: str, value: object) -> str | Mapping[str, object]:
    return value if isinstance(value, dict) else _text(key, value)


def _kv(key: str, value: object) -> str | Mapping[str, str]:
    if isinstance(value, dict):
        if set(value) != {"k", "v"}:
            raise BadInput(f'{key} {_short(value)}: must be a type, or {{"k": type, "v": type}}')
        return {side: _text(f"{key}.{side}", kind).lower() for side, kind in value.items()}
    return _text(key, value).lower()


_LORA: dict[str, Callable[[str, object], object]] = {
    "rank": _integer(),
    "alpha": _number(0, 1e6),
    "dropout": _number(-1e-9, 1),
    "targets": lambda key, value: value if value in ("all-linear", "attention") else _texts()(key, value),
    "dtype": _choice("fp32", "bf16", "fp16"),
    "variant": _choice("lora", "rslora", "dora"),
}


def _lora(key: str, value: object) -> Mapping[str, object]:
    """An object, or on the command line `rank=16,dropout=0.05,targets=q_proj+v_proj`."""
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        value = {name.strip(): _lora_text(name.strip(), text.strip()) for name, _, text in pairs}
    if not isinstance(value, dict):
        raise BadInput(f"{key} {_short(value)}: must be an object with {', '.join(_LORA)}")
    return {_known(f"{key}.", name, _LORA): _LORA[name](f"{key}.{name}", entry) for name, entry in value.items()}


def _lora_text(name: str, text: str) -> object:
    return text.split("+") if name == "targets" and text not in ("all-linear", "attention") else text


def _known(prefix: str, name: str, allowed: Mapping[str, object]) -> str:
    if name not in allowed:
        hint = nearest(str(name), allowed) or f"; allowed are {', '.join(allowed)}"
        raise BadInput(f"unknown key {prefix}{str(name)[:60]!r}{hint}")
    return name


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _key(help: str, read: Callable[[str, Any], object], group: str) -> Any:
    return field(default=None, metadata={"help": help, "read": read, "group": group})


ENGINE_ALIASES = {"ollama": "llama.cpp", "lm-studio": "llama.cpp", "lmstudio": "llama.cpp", "koboldcpp": "llama.cpp"}
"""Programs that run another engine's code."""


def _engine(key: str, value: object) -> str:
    known = ENGINE_ALIASES.get(value.lower(), value) if isinstance(value, str) else value
    return _choice(*dict.fromkeys(ENGINES["infer"] + ENGINES["train"]))(key, known)


MTP, NGRAM = NO_MODEL = ("mtp", "ngram")
"""In place of a draft model's name: the layers that ship with the model itself, and no model at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What somebody wants to run. Sizes in bytes, lengths in tokens; `None` is left to the engine."""

    model: str | Mapping[str, object]
    task: str = field(default="infer", metadata={"help": "train or infer", "read": _choice(*TASKS), "group": "What"})
    engine: str | None = _key("the program that runs it", _engine, "What")
    engine_version: str | None = _key("its version; default: the newest that we know", _text, "What")

    program: str | None = _key(
        f"the program that runs the engine, where its defaults are its own; so says an engine called {', '.join(ENGINE_ALIASES)}",
        _choice(*ENGINE_ALIASES),
        "What",
    )

    gpu: str | None = _key("GPU, by catalogue id or name", _text, "Hardware")
    gpu_count: int | None = _key("how many GPUs", _integer(), "Hardware")
    gpu_memory: int | None = _key("memory of one GPU, such as 24GiB, in place of the catalogue's", _size, "Hardware")

    tensor_parallel: int | None = _key("tensor-parallel degree", _integer(), "Parallelism")
    pipeline_parallel: int | None = _key("pipeline-parallel degree", _integer(), "Parallelism")
    context_parallel: int | None = _key("context-parallel degree", _integer(), "Parallelism")
    expert_parallel: int | None = _key("expert-parallel degree", _integer(), "Parallelism")
    data_parallel: int | None = _key("replicas that share experts, -dp (vLLM)", _integer(), "Parallelism")
    sharding: str | None = _key("over the remaining GPUs", _choice("none", "ddp", "zero1", "zero2", "zero3", "fsdp", "hsdp"), "Parallelism")
    reshard_after_forward: str | None = _key("FSDP", _choice("default", "always", "never"), "Parallelism")
    virtual_pipeline: int | None = _key("pipeline chunks per GPU", _integer(), "Parallelism")
    pipeline_schedule: str | None = _key("pipeline", _choice("1f1b", "interleaved", "gpipe", "zero-bubble"), "Parallelism")
    offload: tuple[str, ...] | None = _key(
        "what is kept in host memory", _texts("optimizer", "parameters", "activations", "kv_cache"), "Parallelism"
    )

    method: str | None = _key("full, lora, qlora, dora, …", _text, "Training")
    objective: str | None = _key("sft, or as TRL's trainers: dpo, orpo, kto, reward, grpo", _text, "Training")
    reference: str | None = _key(
        "what dpo, kto and grpo compare with: model, adapter-off, precomputed, none",
        _choice("model", "adapter-off", "precomputed", "none"),
        "Training",
    )
    group_size: int | None = _key("generations for each prompt (grpo)", _integer(2), "Training")
    generation: str | None = _key(
        "who makes completions (grpo): transformers in-process, vllm on this GPU (vllm-sleep: asleep while it trains), a server elsewhere",
        _choice("in-process", "vllm", "vllm-sleep", "server"),
        "Training",
    )
    precision: str | None = _key(
        "fp32, bf16, fp16 (pure), bf16-mixed, fp16-mixed, bf16-master (fp32 copy of the weights), fp8-mixed",
        _choice("fp32", "bf16", "fp16", "bf16-mixed", "fp16-mixed", "bf16-master", "fp8-mixed"),
        "Training",
    )
    quantization: str | None = _key("of the frozen base: nf4, fp4, int8", _choice("nf4", "fp4", "int8"), "Training")
    double_quant: bool | None = _key("quantise the quantisation constants of nf4 and fp4 too", _flag, "Training")
    lora: Mapping[str, object] | None = _key(
        "{rank, alpha, dropout, targets, dtype, variant}, or rank=16,targets=q_proj+v_proj", _lora, "Training"
    )
    optimizer: str | None = _key("adamw, adamw-fused, adamw-8bit, …", _text, "Training")
    optimizer_dtype: str | None = _key("dtype of the optimizer's states", _choice("fp32", "bf16", "fp16", "int8", "fp8"), "Training")
    optimizer_rank: int | None = _key("rank of the optimizer's projections (GaLore)", _integer(), "Training")
    ema: bool | None = _key("a running average of the trained weights is kept", _flag, "Training")
    optimizer_in_backward: bool | None = _key("step inside the backward pass", _flag, "Training")
    micro_batch: int | None = _key("sequences per GPU and pass", _integer(), "Training")
    sequence_length: int | None = _key("tokens per training sequence", _integer(), "Training")
    gradient_accumulation: int | None = _key("passes per step", _integer(), "Training")
    checkpointing: str | None = _key("of activations", _choice("none", "full", "selective"), "Training")
    checkpoint_every: int | None = _key("each k-th layer is checkpointed, the others keep everything", _integer(), "Training")
    loss: str | None = _key(
        "plain, chunked, fused (with the head, as Liger), cut (cut cross-entropy), compiled (torch.compile)",
        _choice("plain", "chunked", "fused", "cut", "compiled"),
        "Training",
    )
    trained_modules: tuple[str, ...] | None = _key("embeddings or heads trained beside LoRA", _texts(), "Training")
    frozen_modules: tuple[str, ...] | None = _key(
        "modules that full fine-tuning leaves as they are, such as embed_tokens", _texts(), "Training"
    )
    images: int | None = _key("images in each training sequence, among its tokens", _integer(0, 4096), "Training")
    image_size: tuple[int, int] | None = _key("of the images in pixels, such as 896, or width and height as 1024x768", _pixels, "Training")
    tower: Literal["frozen", "projector", "trained"] | None = _key(
        "what of a vision tower trains: frozen, projector, or trained as the method says",
        _choice("frozen", "projector", "trained"),
        "Training",
    )
    kbit_preparation: bool | None = _key("PEFT's prepare_model_for_kbit_training over a quantised base", _flag, "Training")
    head: str | None = _key("what an encoder is trained with", _choice("classification", "mlm"), "Training")
    attention: str | None = _key("attention kernel", _choice("eager", "sdpa", "flash"), "Kernels")
    kernels: str | None = _key("native, or liger (Liger Kernel)", _choice("native", "liger"), "Kernels")
    compile: bool | None = _key("torch.compile", _flag, "Kernels")

    weights: str | None = _key("number format of the weights, such as bf16, fp8, awq, nf4, Q4_K_M", _text, "Inference")
    kv_dtype: str | Mapping[str, str] | None = _key(
        "number format of the KV cache: auto, bf16, fp16, fp8, q8_0 (llama.cpp), q4 (ExLlama), mlx-8bit, int8 (LMDeploy), …",
        _kv,
        "Inference",
    )
    context_length: int | None = _key("longest sequence in tokens, prompt and output", _integer(), "Inference")
    sequences: int | None = _key("sequences held at once", _integer(), "Inference")
    prompt_length: int | None = _key("tokens of the prompt", _integer(), "Inference")
    output_length: int | None = _key("tokens generated", _integer(0), "Inference")
    draft_model: str | Mapping[str, object] | None = _key(
        "model for speculative decoding; mtp: its own layers, ngram: none (vLLM)", _model, "Inference"
    )
    runner: str | None = _key(
        "generate, or pooling: the model embeds or ranks texts (transformers, vLLM); encoders always do", _choice("generate", "pooling"),
        "Inference",
    )  # fmt: skip
    num_beams: int | None = _key("beams of beam search (transformers)", _integer(1, 1024), "Inference")
    cache_implementation: str | None = _key(
        "cache of generate (transformers): dynamic, static, offloaded, offloaded-static, quanto-int4, quanto-int2, fp8 or hqq-int4",
        _choice("dynamic", "static", "offloaded", "offloaded-static", "quanto-int4", "quanto-int2", "fp8", "hqq-int4"),
        "Inference",
    )

    device_map: str | None = _key(
        "how weights go to the GPUs and the host (transformers): auto, balanced, balanced-low-0, sequential",
        _choice("auto", "balanced", "balanced-low-0", "sequential"),
        "Inference",
    )
    host_memory: int | None = _key("free host memory, such as 64GiB, for what a device_map leaves there", _size, "Inference")

    gpu_memory_utilization: float | None = _key(
        "share of the GPU that the engine takes (vLLM, SGLang), or of what is free its pool (TensorRT-LLM, LMDeploy)",
        _number(0, 1),
        "vLLM, SGLang",
    )
    max_batched_tokens: int | None = _key(
        "tokens in one forward pass (vLLM, SGLang, TensorRT-LLM), or of a prompt's chunk (LMDeploy, MLX, ExLlama)",
        _integer(),
        "vLLM, SGLang",
    )
    eager: bool | None = _key("no CUDA graphs (vLLM, SGLang)", _flag, "vLLM, SGLang")
    block_size: int | None = _key("tokens in a page of cache (vLLM)", _integer(1, 1024), "vLLM, SGLang")
    max_loras: int | None = _key("slots for LoRA adapters of the rank that lora names (vLLM)", _integer(), "vLLM, SGLang")

    gpu_layers: int | None = _key("layers on the GPU, -ngl (llama.cpp)", _integer(-1), "llama.cpp")
    ubatch: int | None = _key("tokens in one forward pass, -ub (llama.cpp)", _integer(), "llama.cpp")
    logical_batch: int | None = _key("tokens that are taken at once, -b, of which -ub never has more (llama.cpp)", _integer(), "llama.cpp")
    outputs: int | None = _key(
        "rows of a pass that give logits, such as the slots of a llama-server of 2026; default: all (llama.cpp)", _integer(), "llama.cpp"
    )
    flash_attention: bool | None = _key("flash attention, -fa (llama.cpp)", _flag, "llama.cpp")
    cpu_moe_layers: int | None = _key("layers whose experts stay on the CPU, --n-cpu-moe (llama.cpp)", _integer(0), "llama.cpp")
    tensor_split: tuple[float, ...] | None = _key("shares of the GPUs, -ts (llama.cpp)", _numbers, "llama.cpp")
    override_tensor: tuple[str, ...] | None = _key("pattern=device, -ot (llama.cpp)", _texts(), "llama.cpp")
    split_mode: str | None = _key("how GPUs share the model, -sm (llama.cpp)", _choice("none", "layer", "row", "tensor"), "llama.cpp")
    kv_unified: bool | None = _key("one cache for all slots, -kvu (llama.cpp)", _flag, "llama.cpp")
    swa_full: bool | None = _key("full-size cache for sliding windows, --swa-full (llama.cpp)", _flag, "llama.cpp")
    kv_offload: bool | None = _key("whether the cache is on the GPUs; no is -nkvo (llama.cpp)", _flag, "llama.cpp")
    op_offload: bool | None = _key(
        "whether GPUs take large operations over host weights; no is --no-op-offload (llama.cpp)", _flag, "llama.cpp"
    )
    mmproj: bool | None = _key("a projector for images or sound is loaded too, --mmproj (llama.cpp)", _flag, "llama.cpp")


@cache
def keys() -> Mapping[str, Mapping[str, Any]]:
    """Every key of a scenario but `model`, with its metadata: help, read, group."""
    return {f.name: f.metadata for f in fields(Scenario) if f.name != "model"}


def scenario(given: Mapping[str, object]) -> Scenario:
    """A scenario from a mapping (a JSON object, a command line, keyword arguments). `None` values count as left out.

    Raises BadInput for an unknown key (naming the nearest), a wrong value (naming what is allowed) or a missing model.
    """
    known = {"model": {"read": _model}, **keys()}
    values = {_known("", name, known): known[name]["read"](name, value) for name, value in given.items() if value is not None}
    if "model" not in values:
        raise BadInput("no model given: a catalogue id, a Hugging Face repo id, a path, or a config as an object")
    if str(given.get("engine")).lower() in ENGINE_ALIASES:
        values.setdefault("program", str(given["engine"]).lower())
    made = Scenario(**values)
    if made.engine and made.engine not in ENGINES[made.task]:
        raise BadInput(f"engine {made.engine!r} is not for task {made.task!r}: allowed are {', '.join(ENGINES[made.task])}")
    return made
