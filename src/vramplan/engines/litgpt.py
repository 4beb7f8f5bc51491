"""LitGPT on one GPU: `litgpt generate`, with a cache of prompt and new tokens made up front, beside a mask of their square.

One model class runs all families: queries, keys and values come of one projection, keys and values are repeated to all heads in every step,
a tied head has a matrix of its own, RMS norms are in fp32. The prompt goes through in one pass, with logits of all its tokens, which
Lightning hands out in fp32. bitsandbytes packs the head too. Source: `litgpt/generate/base.py`, `litgpt/model.py` (GPT.set_kv_cache,
build_mask_cache, CausalSelfAttention) of LitGPT 0.5.13. What it does not know: several GPUs (`generate_tp`, `generate_sequentially`),
mixtures of experts, latent attention, sampling's own tensors (a few of one vocabulary's size), `--compile`, torch's slack.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from ..dim import numel
from ..errors import BadInput, Unknown
from ..formats import scheme
from ..kernels import Kernels
from ..ledger import Item, Moment
from ..tape import Tape
from ..tensors import Cache, Tensor
from .job import MANY, Account, Job
from .lines import SERVING, block_rest_item, cache_items, counted, text_caches, weight_items
from .process import CUDA_CONTEXT, cublas

NAMES = ("litgpt",)
ABOUT = "one GPU: `litgpt generate`, fp32, bf16, fp16 and bitsandbytes; not: several GPUs, mixtures of experts, latent attention, --compile"
VERSION = "0.5"

PACKED = ("nf4", "fp4", "int8")
"""bitsandbytes' formats: `--quantize bnb.nf4`, `bnb.nf4-dq`, `bnb.fp4`, `bnb.int8`."""
BLOCK = 64
"""Elements of a 4-bit block, each with a scale: bitsandbytes `functional.py` quantize_4bit."""

ALWAYS = SERVING | {Moment.LOAD}
KERNELS = Kernels(
    attention="sdpa", norm="fp32", mlp="plain", rope="concatenated", kv="expanded", qkv="joined", gate_up="split", dropout=False,
    tied=False, logits="all-fp32",
)  # fmt: skip


def account(job: Job) -> Account:
    """Weights, the cache of every token, and the tape's peak at prefill and at the last step."""
    s = job.scenario
    job = _checked(job)
    context = job.context(default=(s.prompt_length or 4096) + (s.output_length or 0))
    prompt = job.prompt(context)
    sequences = s.sequences or 1
    prefill = _tape(job, sequences, prompt, 0, context)
    decode = _tape(job, sequences, 1, context - 1, context)
    _described(job, prefill)
    source = "LitGPT 0.5.13 litgpt/model.py build_kv_cache"
    held = partial(_held, sequences, context)
    items = [
        *weight_items(job, prefill, ALWAYS),
        *cache_items(text_caches(prefill), held, kv_dtype="auto", default=job.dtype, alive=ALWAYS, source=source),
        *_buffers(prefill, context, job.itemsize),
        *_loading(job, prefill),
        *_passes(prefill, decode, prompt),
        cublas(job.gpu, SERVING),
        block_rest_item(job, prefill, ALWAYS),
    ]
    allocated = max(sum(i.nbytes for i in items if m in i.alive) for m in ALWAYS)
    why = "one process with lazy module loading"
    items.append(Item(path=("cuda context",), nbytes=CUDA_CONTEXT, alive=ALWAYS, why=why, source="pytorch #107667"))
    return Account(
        tape=prefill,
        items=items,
        room=job.gpu.usable if job.gpu else None,
        filled={
            "engine_version": s.engine_version or VERSION,
            "sequences": sequences,
            "context_length": context,
            "prompt_length": prompt,
        },
        facts={"peak_allocated": allocated, "process": allocated + CUDA_CONTEXT},
        assumptions=[
            f"litgpt generate: {counted(sequences, 'sequence')}, a prompt of {prompt:,} tokens in one pass, logits of all its tokens"
        ],
        remarks=["torch's allocator keeps freed blocks: what nvidia-smi shows lies a few percent above these figures"],
    )


def _checked(job: Job) -> Job:
    """The job with bitsandbytes' layers for the head too. Raises BadInput and Unknown for what LitGPT does not run, or this file."""
    job.refuse(*MANY, "compile", "gpu_memory_utilization")
    job.generates_only()
    job.only_formats(*PACKED)
    job.kv_types("bf16", "fp16", "fp32")
    if job.scenario.kv_dtype not in (None, "auto", job.dtype):
        raise BadInput(f"kv_dtype {job.scenario.kv_dtype!r}: LitGPT's cache has the dtype of its precision, {job.dtype}")
    name = job.scheme.name
    if name.startswith(PACKED) and "head" not in name:
        return replace(job, scheme=scheme(f"{name}-head", dtype=job.model.dtype))
    return job


def _tape(job: Job, sequences: int, tokens: int, past: int, context: int) -> Tape:
    """A pass, with its rows of the mask and what packed weights are unpacked to.

    One key head is broadcast, not repeated; logits in fp32 are handed out as they are.
    """
    single = job.model.text.get("multi_query") is True or job.model.text.get("num_key_value_heads") == 1
    kernels = replace(KERNELS, logits="all" if job.itemsize == 4 else "all-fp32")
    kernels = replace(kernels, attention="flash", kv="grouped") if single else kernels
    tape = job.tape(sequences=sequences, tokens=tokens, past=past, kernels=kernels, itemsize=job.itemsize)
    attentions = [at for at, op in enumerate(tape.ops) if op.name.endswith("attention")]
    tape.tensors += [Tensor("mask", (tokens, context), 1, 0, at) for at in attentions[-1:]]
    tape.tensors += [Tensor("mask added", (tokens, past + tokens), job.itemsize, at, at) for at in attentions]
    if sequences * tokens > 1:
        _unpacking(job, tape)
    return tape


def _described(job: Job, tape: Tape) -> None:
    if any(weight.kind in ("experts", "router") for weight in tape.weights):
        raise Unknown("engine 'litgpt': mixtures of experts, which it runs one expert at a time, are not estimated by this version")
    if not any(weight.parts for weight in tape.weights) or any(cache.side == "state" for cache in tape.caches):
        raise Unknown(
            f"engine 'litgpt': {job.model.id} is not described here as it runs it, with one projection of queries, keys and values"
        )


def _held(sequences: int, context: int, cache: Cache) -> tuple[int, int, str]:
    """Every position of a sequence, or a window's."""
    kept = min(context, int(cache.window)) if cache.window is not None else context
    return sequences, kept, f" of {context:,}" if kept < context else ""


def _unpacking(job: Job, tape: Tape) -> None:
    """What bitsandbytes makes for the product of several rows: a matrix in fp16 and in the dtype of activations, or 8-bit operands.

    Source: bitsandbytes 0.42 `autograd/_functions.py` MatMul4Bit (dequantize_4bit(…).to(A.dtype)), MatMul8bitLt (CA, CAt, int32 output).
    """
    kind = job.scheme.name.split("-")[0]
    for at, op in enumerate(tape.ops if kind in PACKED else ()):
        for weight in op.weights:
            if weight.kind not in ("linear", "head") or len(weight.shape) != 2:
                continue
            if kind == "int8":
                made = [(op.reads[0].shape, 2), (op.writes[0].shape, 4)]
            else:
                scales = [((numel(weight.shape) // BLOCK,), 4)] if "double" in job.scheme.name else []
                made = [(weight.shape, 2), *([(weight.shape, job.itemsize)] if job.dtype != "fp16" else []), *scales]
            tape.tensors += [Tensor("unpacked", shape, itemsize, at, at) for shape, itemsize in made]


def _loading(job: Job, tape: Tape) -> list[Item]:
    """The largest matrix while bitsandbytes packs it, when all others are there already: in fp16, and what comes of it (int8: twice)."""
    kind = job.scheme.name.split("-")[0]
    largest = max((numel(w.shape) for w in tape.weights if w.kind in ("linear", "head") and len(w.shape) == 2), default=0)
    if kind not in PACKED:
        return []
    nbytes = 2 * largest + (2 * largest if kind == "int8" else largest // 2 + largest // BLOCK * 4)
    source = "Lightning 2.6 fabric/plugins/precision/bitsandbytes.py quantize; bitsandbytes 0.42 double_quant, quantize_4bit"
    why = f"the largest matrix of {largest:,} elements in fp16, and packed beside the one that it replaces"
    return [Item(path=("load", "packing"), nbytes=nbytes, alive=frozenset({Moment.LOAD}), why=why, source=source)]


def _buffers(tape: Tape, context: int, itemsize: int) -> list[Item]:
    """The mask of every pair of positions, one byte each, and cosines and sines."""
    width = max(tape.rotated, default=0)
    source = "LitGPT 0.5.13 litgpt/model.py"
    return [
        Item(
            path=("buffers", "mask"), nbytes=context * context, alive=ALWAYS, why=f"{context:,} × {context:,} × 1 B",
            source=f"{source} build_mask_cache",
        ),
        Item(
            path=("buffers", "rotary"), nbytes=2 * context * width * itemsize, alive=ALWAYS, why=f"2 × {context:,} positions × {width}",
            source=f"{source} build_rope_cache",
        ),
    ]  # fmt: skip


def _passes(prefill: Tape, decode: Tape, prompt: int) -> list[Item]:
    items = []
    for tape, moment, what in ((prefill, Moment.PREFILL, f"prefill of {prompt:,} tokens"), (decode, Moment.DECODE, "one decode step")):
        nbytes, where = tape.peak()
        why, source = f"most alive at once in the {what}, at {where or 'the end'}", "the tape's forward pass"
        items.append(Item(path=("activations", moment.value), nbytes=nbytes, alive=frozenset({moment}), why=why, source=source))
    return items
