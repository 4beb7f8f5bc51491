"""transformers' `generate`: the weights, a dynamic cache, and the working set of the larger of prefill and decode.

Every allocation is torch's own: no pool, no graphs. `peak_allocated` is what `torch.cuda.max_memory_allocated()` shows, `process` adds the
CUDA context. What it does not know: the caching allocator's slack, beams, assisted decoding, quantised and offloaded caches, device maps;
the caches of latent attention before PR #47761 (DeepSeek-V3) and #48761 (V3.2), which held the keys and values of all heads, and that of
Falcon-40B and 180B, whose code repeats keys and values to all heads before it caches them.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from ..catalog.gpus import Gpu
from ..ledger import Item, Moment
from ..tape import Cache, Kernels
from ..units import MiB
from .job import MANY, Account, Job, release
from .lines import SERVING, block_rest_item, cache_items, counted, text_caches, weight_items

NAMES = ("transformers",)
ABOUT = "one GPU, dynamic cache, last-token logits; not: allocator slack, beams, assisted decoding, quantised caches, device maps"
VERSION = "5.23"

LAST_LOGITS = (4, 45)
"""The first release whose `generate` asks for the last position's logits only (`num_logits_to_keep`, transformers PR #31292)."""
_LOGITS = {"last": "the last token only", "all-fp32": "every token, and their fp32 copy"}
CUDA_CONTEXT = 300 * MiB
"""With lazy module loading, the default since CUDA 12.2 on Linux: pytorch issue #107667 and NVIDIA forum threads 261135 and 290090."""
CUBLAS_WORKSPACE = 8_519_680
"""Taken from torch's allocator by the first matrix product, before Hopper: pytorch issue #95668 (8,519,680 B)."""
CUBLAS_WORKSPACE_HOPPER = 32 * MiB
"""On compute capability 9.0: pytorch issue #182669."""


def cublas(gpu: Gpu | None, alive: frozenset[Moment]) -> Item:
    """The workspace of cuBLAS: one handle and stream, taken from torch's allocator by the first matrix product."""
    hopper = gpu is not None and gpu.compute_capability == "9.0"
    nbytes, source = (CUBLAS_WORKSPACE_HOPPER, "pytorch #182669") if hopper else (CUBLAS_WORKSPACE, "pytorch #95668")
    return Item(
        path=("workspace", "cuBLAS"), nbytes=nbytes, alive=alive, why="one handle and stream, from torch's allocator", source=source
    )


def account(job: Job) -> Account:
    """Weights, cache, and the tape's peak at prefill and at the last decode step."""
    s = job.scenario
    job.refuse(*MANY, "compile")
    job.refuse_formats("mlx", "exl2", "exl3")
    job.kv_types("bf16", "fp16", "fp32")
    sequences = s.sequences or 1
    context = job.context(default=(s.prompt_length or 4096) + (s.output_length or 0))
    prompt = job.prompt(context)
    version = s.engine_version or VERSION
    logits: Literal["last", "all-fp32"] = "last" if release(version) >= LAST_LOGITS else "all-fp32"
    softmax: Literal["copied", "fused"] = "fused" if job.dtype == "fp16" else "copied"
    kernels = Kernels(attention="eager" if s.attention == "eager" else "sdpa", logits=logits, softmax=softmax)

    prefill = job.tape(sequences=sequences, tokens=prompt, kernels=kernels, itemsize=job.itemsize)
    decode = job.tape(sequences=sequences, tokens=1, past=context - 1, kernels=kernels, itemsize=job.itemsize)
    items = [*weight_items(job, prefill, SERVING)]
    caches = [_as_cached(cache) for cache in text_caches(prefill)]
    for held, moment in ((partial(_prefilled, sequences, prompt), Moment.PREFILL), (partial(_decoded, sequences, context), Moment.DECODE)):
        items += cache_items(
            caches,
            held,
            kv_dtype=s.kv_dtype,
            default=job.dtype,
            alive=frozenset({moment}),
            source="transformers 5.23 cache_utils.py: DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer",
        )
    for tape, moment, what in ((prefill, Moment.PREFILL, f"prefill of {prompt:,} tokens"), (decode, Moment.DECODE, "one decode step")):
        nbytes, where = tape.peak()
        why = f"most alive at once in the {what} of {counted(sequences, 'sequence')}, at {where or 'the end'}"
        items.append(
            Item(path=("activations", moment.value), nbytes=nbytes, alive=frozenset({moment}), why=why, source="the tape's forward pass")
        )
    items += [cublas(job.gpu, SERVING), block_rest_item(job, prefill, SERVING)]
    allocated = max(sum(i.nbytes for i in items if m in i.alive) for m in (Moment.PREFILL, Moment.DECODE))
    why = "one process with lazy module loading"
    items.append(Item(path=("cuda context",), nbytes=CUDA_CONTEXT, alive=SERVING, why=why, source="pytorch #107667"))
    return Account(
        tape=prefill,
        items=items,
        room=job.gpu.usable if job.gpu else None,
        filled={
            "engine_version": version,
            "sequences": sequences,
            "context_length": context,
            "prompt_length": prompt,
            "attention": s.attention or "sdpa",
        },
        facts={"peak_allocated": allocated, "process": allocated + CUDA_CONTEXT},
        assumptions=[f"transformers {version}: prefill of {prompt:,} tokens in one pass, logits of {_LOGITS[logits]}"],
        remarks=["torch's allocator keeps freed blocks: what nvidia-smi shows lies a few percent above these figures"],
    )


def _as_cached(cache: Cache) -> Cache:
    """Convolutions keep `kernel` columns, one more than the next step needs (`LinearAttentionLayer.update_conv_state`)."""
    return replace(cache, shape=(cache.shape[0], cache.shape[1] + 1)) if cache.name == "conv state" else cache


def _prefilled(sequences: int, tokens: int, cache: Cache) -> tuple[int, int, str]:
    """A sliding layer keeps its last window − 1 tokens as a view, so that until its next step those of the whole prompt stay allocated."""
    return sequences, tokens // cache.stride, ""


def _decoded(sequences: int, tokens: int, cache: Cache) -> tuple[int, int, str]:
    """In decode a sliding layer's view is of window − 1 kept tokens and the new one (`DynamicSlidingWindowLayer.update`)."""
    kept = cache.kept(tokens)
    return sequences, kept, f" of {tokens:,}" if kept < tokens else ""
