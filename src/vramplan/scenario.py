"""Scenario: every choice that a user has, with its help text, validated once. The command line, the JSON and the answer all come from here.

A field's `metadata` says what it means, how a value is read and which engines or tasks it is for; `None` means that the user left it to
the engine's default. Nothing here knows a formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal

from .errors import BadInput
from .readers import FLAG, INTEGERS, KV, LORA, MODEL, NUMBERS, PIXELS, SIZE, TEXT, Reader, choice, integer, known_key, number, size, texts

TASKS = ("infer", "train")
ENGINES = {
    "infer": ("vllm", "sglang", "llama.cpp", "transformers", "tensorrt-llm", "mlx", "exllamav2", "exllamav3", "lmdeploy", "litgpt"),
    "train": ("transformers", "torchtune", "litgpt", "unsloth", "torchtitan", "megatron"),
}


def _key(help: str, read: Reader, group: str) -> Any:
    return field(default=None, metadata={"help": help, "read": read, "group": group})


ENGINE_ALIASES = {"ollama": "llama.cpp", "lm-studio": "llama.cpp", "lmstudio": "llama.cpp", "koboldcpp": "llama.cpp"}
"""Programs that run another engine's code."""


def _read_engine(key: str, value: object) -> str:
    known = ENGINE_ALIASES.get(value.lower(), value) if isinstance(value, str) else value
    return str(choice(*dict.fromkeys(ENGINES["infer"] + ENGINES["train"]))(key, known))


_engine = Reader(_read_engine, {"type": "string", "enum": [*dict.fromkeys(ENGINES["infer"] + ENGINES["train"]), *ENGINE_ALIASES]})


MTP, NGRAM = NO_MODEL = ("mtp", "ngram")
"""In place of a draft model's name: the layers that ship with the model itself, and no model at all."""


FLAGS = ("double_quant", "optimizer_in_backward", "compile", "expandable_segments", "eager", "flash_attention")
"""Keys that a command line has as `--key` and `--no-key`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What somebody wants to run. Sizes in bytes, lengths in tokens; `None` is left to the engine."""

    model: str | Mapping[str, object]
    task: str = field(default="infer", metadata={"help": "train or infer", "read": choice(*TASKS), "group": "What"})
    engine: str | None = _key(
        "the program that runs it; `vramplan engines` says what each covers and how well it was validated", _engine, "What"
    )
    engine_version: str | None = _key("its version; default: the newest that we know", TEXT, "What")

    program: str | None = _key(
        f"the program that runs the engine, where its defaults are its own; so says an engine called {', '.join(ENGINE_ALIASES)}",
        choice(*ENGINE_ALIASES),
        "What",
    )

    gpu: str | None = _key(
        "GPU, by catalogue id or name; auto: this machine's; several kinds as rtx-4090+rtx-3060 (llama.cpp, transformers' device_map)",
        TEXT,
        "Hardware",
    )
    gpu_count: int | None = _key("how many GPUs", integer(), "Hardware")
    gpu_memory: int | None = _key("memory of one GPU, such as 24GiB, in place of the catalogue's", size(1), "Hardware")

    tensor_parallel: int | None = _key("tensor-parallel degree", integer(), "Parallelism")
    pipeline_parallel: int | None = _key("pipeline-parallel degree", integer(), "Parallelism")
    context_parallel: int | None = _key("context-parallel degree", integer(), "Parallelism")
    expert_parallel: int | None = _key("expert-parallel degree", integer(), "Parallelism")
    data_parallel: int | None = _key("replicas that share experts, -dp (vLLM)", integer(), "Parallelism")
    sharding: str | None = _key("over the remaining GPUs", choice("none", "ddp", "zero1", "zero2", "zero3", "fsdp", "hsdp"), "Parallelism")
    reshard_after_forward: str | None = _key("FSDP", choice("default", "always", "never"), "Parallelism")
    fsdp_version: int | None = _key(
        "1: FullyShardedDataParallel, also as whole copies with sharding ddp (NO_SHARD); 2: fully_shard", integer(1, 2), "Parallelism"
    )
    gradient_as_bucket_view: bool | None = _key("gradients lie in the buckets that are reduced (ddp)", FLAG, "Parallelism")
    shard_size: int | None = _key("GPUs that share one copy of the weights (hsdp); default: 8", integer(2), "Parallelism")
    virtual_pipeline: int | None = _key("pipeline chunks per GPU (Megatron)", integer(), "Parallelism")
    pipeline_schedule: str | None = _key(
        "order of a pipeline's passes (Megatron)", choice("1f1b", "interleaved", "gpipe", "zero-bubble"), "Parallelism"
    )
    pipeline_layers: tuple[int, ...] | None = _key(
        "layers of each pipeline stage, such as 14,13, where they are uneven (Megatron)", INTEGERS, "Parallelism"
    )
    sequence_parallel: bool | None = _key("whether tensor parallelism splits tokens too; default: yes (Megatron)", FLAG, "Parallelism")
    offload: tuple[str, ...] | None = _key(
        "what is kept in host memory", texts("optimizer", "parameters", "activations", "kv_cache"), "Parallelism"
    )

    method: str | None = _key("full, lora, qlora, dora, …", TEXT, "Training")
    objective: str | None = _key("sft, or as TRL's trainers: dpo, orpo, kto, reward, grpo", TEXT, "Training")
    reference: str | None = _key(
        "what dpo, kto and grpo compare with: model, adapter-off, precomputed, none",
        choice("model", "adapter-off", "precomputed", "none"),
        "Training",
    )
    group_size: int | None = _key("generations for each prompt (grpo)", integer(2), "Training")
    generation: str | None = _key(
        "who makes completions (grpo): transformers in-process, vllm on this GPU (vllm-sleep: asleep while it trains), a server elsewhere",
        choice("in-process", "vllm", "vllm-sleep", "server"),
        "Training",
    )
    precision: str | None = _key(
        "fp32, bf16, fp16 (pure), bf16-mixed, fp16-mixed, bf16-master (fp32 copy of the weights), fp8-mixed",
        choice("fp32", "bf16", "fp16", "bf16-mixed", "fp16-mixed", "bf16-master", "fp8-mixed"),
        "Training",
    )
    quantization: str | None = _key("of the frozen base: nf4, fp4, int8", choice("nf4", "fp4", "int8"), "Training")
    double_quant: bool | None = _key("quantise the quantisation constants of nf4 and fp4 too", FLAG, "Training")
    lora: Mapping[str, object] | None = _key(
        "{rank, alpha, dropout, targets, dtype, variant}, or rank=16,targets=q_proj+v_proj", LORA, "Training"
    )
    optimizer: str | None = _key("adamw, adamw-fused, adamw-8bit, …", TEXT, "Training")
    optimizer_dtype: str | None = _key("dtype of the optimizer's states", choice("fp32", "bf16", "fp16", "int8", "fp8"), "Training")
    optimizer_rank: int | None = _key("rank of the optimizer's projections (GaLore)", integer(), "Training")
    ema: bool | None = _key("a running average of the trained weights is kept", FLAG, "Training")
    optimizer_in_backward: bool | None = _key("step inside the backward pass", FLAG, "Training")
    micro_batch: int | None = _key("sequences per GPU and pass", integer(), "Training")
    sequence_length: int | None = _key("tokens per training sequence", integer(), "Training")
    gradient_accumulation: int | None = _key("passes per step", integer(), "Training")
    checkpointing: str | None = _key("of activations", choice("none", "full", "selective"), "Training")
    recompute_modules: tuple[str, ...] | None = _key(
        "what checkpointing selective recomputes of a layer (Megatron)",
        texts("core_attn", "layernorm", "mla_up_proj", "moe_act", "mlp", "moe", "shared_experts"),
        "Training",
    )
    recompute_layers: int | None = _key(
        "how many layers of each stage, from its first, checkpointing full recomputes (Megatron's block method); all if left out",
        integer(),
        "Training",
    )
    expert_imbalance: float | None = _key(
        "rows that come to the fullest expert-parallel rank, over those that each sends (Megatron); 1 if left out",
        number(0, 1024),
        "Training",
    )
    gradient_dtype: str | None = _key("what gradients are summed in (Megatron)", choice("fp32", "bf16"), "Training")
    checkpoint_every: int | None = _key("each k-th layer is checkpointed, the others keep everything", integer(), "Training")
    loss: str | None = _key(
        "plain, chunked, fused (with the head, as Liger), cut (cut cross-entropy), compiled (torch.compile)",
        choice("plain", "chunked", "fused", "cut", "compiled"),
        "Training",
    )
    loop: str | None = _key(
        "trainer: nobody holds the logits; plain: a variable of the user's own loop does until the next step",
        choice("trainer", "plain"),
        "Training",
    )
    trained_modules: tuple[str, ...] | None = _key("embeddings or heads trained beside LoRA", texts(), "Training")
    frozen_modules: tuple[str, ...] | None = _key(
        "modules that full fine-tuning leaves as they are, such as embed_tokens", texts(), "Training"
    )
    images: int | None = _key("images in each training sequence, among its tokens", integer(0, 4096), "Training")
    image_size: tuple[int, int] | None = _key("of the images in pixels, such as 896, or width and height as 1024x768", PIXELS, "Training")
    tower: Literal["frozen", "projector", "trained"] | None = _key(
        "what of a vision tower trains: frozen, projector, or trained as the method says",
        choice("frozen", "projector", "trained"),
        "Training",
    )
    kbit_preparation: bool | None = _key("PEFT's prepare_model_for_kbit_training over a quantised base", FLAG, "Training")
    head: str | None = _key("what an encoder is trained with", choice("classification", "mlm"), "Training")
    attention: str | None = _key("attention kernel", choice("eager", "sdpa", "flash"), "Kernels")
    kernels: str | None = _key("native, or liger (Liger Kernel)", choice("native", "liger"), "Kernels")
    compile: bool | None = _key("torch.compile", FLAG, "Kernels")
    expandable_segments: bool | None = _key("PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True, of torch's allocator", FLAG, "Kernels")

    weights: str | None = _key("number format of the weights, such as bf16, fp8, awq, nf4, Q4_K_M", TEXT, "Inference")
    kv_dtype: str | Mapping[str, str] | None = _key(
        "number format of the KV cache: auto, bf16, fp16, fp8, q8_0 (llama.cpp), q4 (ExLlama), mlx-8bit, int8 (LMDeploy), …",
        KV,
        "Inference",
    )
    context_length: int | None = _key("longest sequence in tokens, prompt and output", integer(), "Inference")
    sequences: int | None = _key("sequences held at once", integer(), "Inference")
    prompt_length: int | None = _key("tokens of the prompt", integer(), "Inference")
    output_length: int | None = _key("tokens generated", integer(0), "Inference")
    draft_model: str | Mapping[str, object] | None = _key(
        "model for speculative decoding; mtp: its own layers, ngram: none (vLLM)", MODEL, "Inference"
    )
    runner: str | None = _key(
        "generate, or pooling: the model embeds or ranks texts (transformers, vLLM); encoders always do", choice("generate", "pooling"),
        "Inference",
    )  # fmt: skip
    num_beams: int | None = _key("beams of beam search (transformers)", integer(1, 1024), "Inference")
    cache_implementation: str | None = _key(
        "cache of generate (transformers): dynamic, static, offloaded, offloaded-static, quanto-int4/2, fp8 or hqq-int8/4/3/2/1",
        choice(
            "dynamic",
            "static",
            "offloaded",
            "offloaded-static",
            "quanto-int4",
            "quanto-int2",
            "fp8",
            *(f"hqq-int{n}" for n in (8, 4, 3, 2, 1)),
        ),
        "Inference",
    )

    device_map: str | None = _key(
        "how weights go to the GPUs and the host (transformers): auto, balanced, balanced-low-0, sequential",
        choice("auto", "balanced", "balanced-low-0", "sequential"),
        "Inference",
    )
    host_memory: int | None = _key("free host memory, such as 64GiB, for what a device_map leaves there", SIZE, "Inference")

    gpu_memory_utilization: float | None = _key(
        "share of the GPU that the engine takes (vLLM, SGLang), or of what is free its pool (TensorRT-LLM, LMDeploy)",
        number(0, 1),
        "vLLM, SGLang",
    )
    max_batched_tokens: int | None = _key(
        "tokens in one forward pass (vLLM, SGLang, TensorRT-LLM), or of a prompt's chunk (LMDeploy, MLX, ExLlama)",
        integer(),
        "vLLM, SGLang",
    )
    eager: bool | None = _key("no CUDA graphs (vLLM, SGLang)", FLAG, "vLLM, SGLang")
    block_size: int | None = _key("tokens in a page of cache (vLLM)", integer(1, 1024), "vLLM, SGLang")
    max_loras: int | None = _key("slots for LoRA adapters of the rank that lora names (vLLM)", integer(), "vLLM, SGLang")

    gpu_layers: int | None = _key("layers on the GPU, -ngl (llama.cpp)", integer(-1), "llama.cpp")
    ubatch: int | None = _key("tokens in one forward pass, -ub (llama.cpp)", integer(), "llama.cpp")
    logical_batch: int | None = _key("tokens that are taken at once, -b, of which -ub never has more (llama.cpp)", integer(), "llama.cpp")
    outputs: int | None = _key(
        "rows of a pass that give logits, such as the slots of a llama-server of 2026; default: all (llama.cpp)", integer(), "llama.cpp"
    )
    flash_attention: bool | None = _key("flash attention, -fa (llama.cpp)", FLAG, "llama.cpp")
    cpu_moe_layers: int | None = _key("layers whose experts stay on the CPU, --n-cpu-moe (llama.cpp)", integer(0), "llama.cpp")
    tensor_split: tuple[float, ...] | None = _key("shares of the GPUs, -ts (llama.cpp)", NUMBERS, "llama.cpp")
    override_tensor: tuple[str, ...] | None = _key("pattern=device, -ot (llama.cpp)", texts(), "llama.cpp")
    split_mode: str | None = _key("how GPUs share the model, -sm (llama.cpp)", choice("none", "layer", "row", "tensor"), "llama.cpp")
    kv_unified: bool | None = _key("one cache for all slots, -kvu (llama.cpp)", FLAG, "llama.cpp")
    swa_full: bool | None = _key("full-size cache for sliding windows, --swa-full (llama.cpp)", FLAG, "llama.cpp")
    kv_offload: bool | None = _key("whether the cache is on the GPUs; no is -nkvo (llama.cpp)", FLAG, "llama.cpp")
    op_offload: bool | None = _key(
        "whether GPUs take large operations over host weights; no is --no-op-offload (llama.cpp)", FLAG, "llama.cpp"
    )
    mmproj: bool | None = _key("a projector for images or sound is loaded too, --mmproj (llama.cpp)", FLAG, "llama.cpp")
    backend: Literal["cuda", "rocm", "vulkan", "metal", "sycl"] | None = _key(
        "what it is built for, which its speed depends on; default: the GPU maker's own (llama.cpp)",
        choice("cuda", "rocm", "vulkan", "metal", "sycl"),
        "llama.cpp",
    )
    host_bandwidth: int | None = _key(
        "of host memory in a second, such as 90GB: the speed of layers on the CPU (llama.cpp)", SIZE, "llama.cpp"
    )


@cache
def keys() -> Mapping[str, Mapping[str, Any]]:
    """Every key of a scenario but `model`, with its metadata: help, read, group."""
    return {f.name: f.metadata for f in fields(Scenario) if f.name != "model"}


def scenario(given: Mapping[str, object]) -> Scenario:
    """A scenario from a mapping (a JSON object, a command line, keyword arguments). `None` values count as left out.

    Raises BadInput for an unknown key (naming the nearest), a wrong value (naming what is allowed) or a missing model.
    """
    known = {"model": {"read": MODEL}, **keys()}
    values = {known_key("", name, known): known[name]["read"](name, value) for name, value in given.items() if value is not None}
    if "model" not in values:
        raise BadInput("no model given: a catalogue id, a Hugging Face repo id, a path, or a config as an object")
    if str(given.get("engine")).lower() in ENGINE_ALIASES:
        values.setdefault("program", str(given["engine"]).lower())
    made = Scenario(**values)
    if made.engine and made.engine not in ENGINES[made.task]:
        raise BadInput(f"engine {made.engine!r} is not for task {made.task!r}: allowed are {', '.join(ENGINES[made.task])}")
    return made
