"""Embedding and ranking with transformers: one pass over a batch of texts, whose hidden states are pooled. Batch × length decides.

Encoders (BERT, XLM-R, ModernBERT …) cache nothing. Decoders that embed (Qwen3-Embedding, e5-mistral …) have no head here, but keep keys and
values until the pass returns, as their config's `use_cache` says. A checkpoint with a head for masked words loads without it, as AutoModel
and sentence-transformers do; one for classification (rerankers) with it. All texts are taken as long as `prompt_length`, without padding.
Judged by transformers' own classes on fake tensors (`data/traced/pooling.jsonl`). What it does not know: rerankers that are asked for the
logits of a word (Qwen3-Reranker), whose head runs over every token; towers; the pooling's own small tensors.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ..errors import BadInput
from ..kernels import Kernels
from ..ledger import Item, Moment
from ..tape import Tape
from ..tensors import Method
from .job import Account, Job
from .lines import block_rest_item, cache_items, counted, text_caches, weight_items
from .process import CUDA_CONTEXT, cublas

PASS = frozenset({Moment.PREFILL})
LENGTH = 512
"""Tokens of a text where the scenario names none, and the model's own length is not shorter."""


def pools(job: Job, tape: Tape) -> bool:
    """Whether the model embeds or ranks texts: asked for (`runner`), or one whose pass, `tape`, keeps nothing for the next."""
    named = job.scenario.runner
    return named == "pooling" if named else not text_caches(tape) and not any(weight.tower for weight in tape.weights)


def account(job: Job, version: str, kernels: Kernels, method: Method | None) -> Account:
    """Weights, and the tape's peak over `sequences` texts of `prompt_length` tokens."""
    s = job.scenario
    job.refuse("gpu_count", "device_map", "num_beams", "cache_implementation")
    if s.output_length:
        raise BadInput(f"output_length {s.output_length:,}: {job.model.id} embeds or ranks texts here and generates nothing")
    context = job.context(default=s.prompt_length or LENGTH)
    prompt, sequences = job.prompt(context), s.sequences or 1
    tape = _headless(job, sequences, prompt, kernels, method)
    nbytes, where = tape.peak()
    held = cache_items(
        text_caches(tape), lambda cache: (sequences, prompt // cache.stride, ""), kv_dtype=s.kv_dtype, default=job.dtype, alive=PASS,
        source="transformers 5.23 cache_utils.py DynamicCache, while the pass runs",
    )  # fmt: skip
    what = f"{counted(sequences, 'text')} of {prompt:,} tokens"
    passing = Item(
        path=("activations", "pass"),
        nbytes=nbytes,
        alive=PASS,
        why=f"most alive at once over {what}, at {where}",
        source="the tape's forward pass",
    )
    items = [*weight_items(job, tape, PASS), *held, passing, cublas(job.gpu, PASS), block_rest_item(job, tape, PASS)]
    allocated = sum(item.nbytes for item in items)
    context_line = Item(
        path=("cuda context",), nbytes=CUDA_CONTEXT, alive=PASS, why="one process with lazy module loading", source="pytorch #107667"
    )
    return Account(
        tape=tape,
        items=[*items, context_line],
        room=job.gpu.usable if job.gpu else None,
        filled={
            "engine_version": version,
            "runner": "pooling",
            "sequences": sequences,
            "context_length": context,
            "prompt_length": prompt,
            "attention": kernels.attention,
        },
        facts={"activation_peak": nbytes, "peak_allocated": allocated, "process": allocated + CUDA_CONTEXT},
        assumptions=[f"transformers {version}: one pass over {what}, which is pooled or classified; nothing is generated"],
        remarks=["torch's allocator keeps freed blocks: what nvidia-smi shows lies a few percent above these figures"],
    )


def _bare(job: Job) -> Job:
    """The job with the class that AutoModel makes, but for classifiers."""
    given = job.model.config.get("architectures")
    if not isinstance(given, list):
        return job
    names = [re.sub(r"For(MaskedLM|PreTraining)$", "Model", str(name)) for name in given]
    return replace(job, model=replace(job.model, config={**job.model.config, "architectures": names}))


def _headless(job: Job, sequences: int, tokens: int, kernels: Kernels, method: Method | None) -> Tape:
    """The pass up to the last hidden states: what a language model's head reads and makes is left out, with its weight."""
    tape = _bare(job).tape(sequences=sequences, tokens=tokens, kernels=kernels, itemsize=job.itemsize, method=method)
    if not text_caches(tape):
        return tape
    speaks = [at for at, op in enumerate(tape.ops) if at and any(w.kind == "head" or w.tied for w in op.weights)]
    end = speaks[0] if speaks else len(tape.ops)
    tensors = [replace(tensor, last=min(tensor.last, end - 1)) for tensor in tape.tensors if tensor.born < end]
    return replace(tape, ops=tape.ops[:end], tensors=tensors, weights=[w for w in tape.weights if w.kind != "head"])
