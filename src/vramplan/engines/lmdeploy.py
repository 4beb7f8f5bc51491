"""LMDeploy's TurboMind: a region for blocks that is 0.8 of what is free once the weights are loaded, and buffers in the rest.

Each block holds 64 tokens of all layers; with quant_policy 8 or 4, keys and values have a scale and a zero point of 2 B each for each token
and head. AWQ and GPTQ weights have two 16-bit numbers for each group. Made up front: attention's partial sums of 4,096 tokens, token
ids of every session, with several ranks the buffer that they share. Source: `src/turbomind/turbomind.cc` CreateEngine,
`kernels/attention/block.h`, `models/llama/unified_attention_layer.cc`, `models/language_model.cc`, `models/linear_weight.cc`,
`generation/generation.cc`, `lmdeploy/messages.py` of LMDeploy 0.16.0. What it does not know: its PyTorch engine, data and context
parallelism, towers' images, recurrent states, what cuBLAS and its own GEMMs take, before 0.2.1 (where 0.5 was of all memory).
"""

from __future__ import annotations

from dataclasses import replace

from ..catalog.gpus import Gpu
from ..dim import numel
from ..errors import BadInput, Unknown
from ..formats import Extra, Format, Scheme
from ..formats.selective import Selective
from ..kernels import Kernels
from ..ledger import Item
from ..tape import Tape
from ..tensors import Cache
from .cuda_context import context_item
from .free_share import RUNNING, Stage, fill, paged_only, request_items
from .job import MANY, Account, Job, release
from .lines import SERVING, counted, text_caches, weight_items
from .ranks import Ranks, ranks

NAMES = ("lmdeploy",)
ABOUT = (
    "TurboMind 0.3 and later: cache_max_entry_count of what is free, quant_policy 4 and 8, AWQ, GPTQ, FP8, MXFP4; TP; "
    "not: its PyTorch engine, DP, CP, states; not validated by measurement"
)
VERSION = "0.16.0"
OLDEST = (0, 3)

SHARE = 0.8
"""`cache_max_entry_count`, of the memory that is free."""
BLOCK = 64
"""Tokens of a block: `cache_block_seq_len`."""
PREFILL = 8192
"""`max_prefill_token_num`."""
BATCHES = (("a100", 384), ("a800", 384), ("h100", 1024), ("h800", 1024), ("l20y", 1024), ("h200", 1024))
"""`max_batch_size` by what the GPU's name contains, else 128: `lmdeploy/utils.py` get_max_batch_size."""
PARTIAL = 4096
"""Tokens whose partial sums attention holds: kMaxWorkspaceTokens, `unified_attention_layer.h`."""
KERNELS = Kernels(attention="flash", norm="fused", mlp="merged", rope="inplace", mla="absorbed", logits="last", tied=False, frames="freed")
ARCHITECTURES = (
    "Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM", "Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration",
    "InternS2PreviewForConditionalGeneration", "InternS2MobiusForConditionalGeneration", "InternVLChatModel",
    "InternVLForConditionalGeneration", "InternS1ForConditionalGeneration",
    "LlamaForCausalLM", "InternLM2ForCausalLM", "InternLM3ForCausalLM", "Glm4MoeLiteForCausalLM", "GptOssForCausalLM", "MixtralForCausalLM",
)  # fmt: skip
"""`lmdeploy/turbomind/supported_models.py`."""


def account(job: Job) -> Account:
    """What TurboMind takes on each GPU, and what its region holds."""
    s = job.scenario
    version = s.engine_version or VERSION
    bits = _checked(job, version)
    job = replace(job, scheme=_paired(job.scheme))
    context = job.context(default=job.model.context_length or 8192)
    batch = s.sequences or _batch(job.gpu)
    batched = s.max_batched_tokens or PREFILL
    fraction = s.gpu_memory_utilization or SHARE
    whole = job.tape(sequences=1, tokens=batched + batch, kernels=KERNELS)
    paged_only(job, whole, "LMDeploy")
    split = ranks(job, whole, "LMDeploy")
    stage = _stage(job, split, batch, batched, context, bits)
    account = Account(
        tape=whole,
        items=stage.items,
        count=split.tensor,
        filled={
            "engine_version": version,
            "sequences": batch,
            "max_batched_tokens": batched,
            "context_length": context,
            "gpu_memory_utilization": fraction,
        },
        facts={"activation_peak": split.tape.peak()[0], "kv_bytes_per_token": stage.token},
        assumptions=[
            f"LMDeploy {version}, TurboMind: cache_max_entry_count {fraction:g}, at most {counted(batch, 'sequence')}, "
            f"{batched:,} tokens of prompts in a pass",
            *split.assumed,
            *([] if s.context_length else [f"sequences of up to {context:,} tokens"]),
        ],
        remarks=["not validated by measurement: weights, cache and buffers follow the engine's source"],
    )
    if job.gpu:
        fill(account, [stage], job.gpu, fraction=fraction, block=BLOCK, context=context, ranks=split.tensor, name="LMDeploy")
    return account


def _checked(job: Job, version: str) -> int:
    """Bits of the cache. Raises BadInput as LMDeploy would refuse, and Unknown for what is not estimated."""
    job.refuse(*(key for key in MANY if key not in ("gpu_count", "tensor_parallel")))
    job.generates_only()
    job.only_formats("awq", "gptq", "fp8", "mxfp4", "compressed-tensors")
    job.only_architectures(*ARCHITECTURES)
    job.kv_types("bf16", "fp16", "int8", "int4")
    if release(version) < OLDEST:
        raise Unknown(f"engine_version {version!r}: LMDeploy before 0.3 is not estimated by this version")
    kv = job.scenario.kv_dtype or "auto"
    if not isinstance(kv, str):
        raise BadInput("kv_dtype: LMDeploy's quant_policy is one for keys and values: auto, int8, int4")
    if job.gpu is not None and job.gpu.vendor not in ("nvidia", ""):
        raise BadInput(f"gpu {job.gpu.name}: TurboMind runs on NVIDIA's GPUs")
    return {"int8": 8, "int4": 4}.get(kv, 16)


def _batch(gpu: Gpu | None) -> int:
    name = gpu.name.lower() if gpu else ""
    return next((size for known, size in BATCHES if known in name), 128)


def _paired(scheme: Scheme) -> Scheme:
    """4-bit integers as TurboMind holds them: in place of scales and zero points a pair of fp16 numbers for each group."""
    if not isinstance(scheme, Selective):
        return scheme

    def paired(form: Format | None) -> Format | None:
        if form is None or not form.name.startswith(("awq", "gptq")):
            return form
        group = next(extra.tile for extra in form.extras if extra.what == "scales")
        return replace(form, extras=(Extra(what="scale and zero", nbytes=4, tile=group),))

    rules = tuple((patterns, paired(form)) for patterns, form in scheme.rules)
    return replace(scheme, linear=paired(scheme.linear), head=paired(scheme.head), experts=paired(scheme.experts), rules=rules)


def _stage(job: Job, split: Ranks, batch: int, batched: int, context: int, bits: int) -> Stage:
    def token(cache: Cache) -> int:
        heads = int(cache.shape[0]) if len(cache.shape) > 1 else 1
        return numel(cache.shape) * bits // 8 + (4 * heads if bits < 16 else 0)

    blocks = -(-context // BLOCK) * BLOCK
    return Stage(
        before=[*weight_items(job, split.tape, SERVING), context_item(job.gpu, SERVING, split.count)],
        after=_buffers(job, split, batch, batched, context),
        token=sum(token(cache) * len(cache.layers) for cache in text_caches(split.tape)),
        caches=request_items(split.tape, blocks, token, "LMDeploy 0.16.0 src/turbomind/kernels/attention/block.h"),
    )


def _buffers(job: Job, split: Ranks, batch: int, batched: int, context: int) -> list[Item]:
    """What is allocated beside the region: one pass, the sampler, attention's partial sums, token ids, what ranks share."""
    tape = split.tape
    forward, where = tape.peak()
    hidden = int(next(w.shape[1] for w in tape.weights if w.kind == "embed" and w.tower is None))
    vocabulary = _vocabulary(tape) * split.tensor
    width = _width(tape)
    partial = PARTIAL * (width + 2 * _heads(job, split.tensor) + 1) * 4
    ids, shared = batch * context * 4, 0 if split.tensor == 1 else 2 * max((batched + batch) * hidden, batch * vocabulary)
    lines = [
        ("activations", "forward", forward, f"a pass of {batched + batch:,} tokens, most alive at {where}", "the tape's forward pass"),
        ("activations", "logits", batch * vocabulary * (2 + 4 + 4), f"{batch:,} × {vocabulary:,}: 16 bits, fp32, indices", "generation.cc"),
        ("buffers", "partial sums", partial, f"{PARTIAL:,} tokens of fp32 outputs", "unified_attention_layer.cc"),
        ("buffers", "token ids", ids, f"{batch:,} × {context:,} × 4 B", "generation.cc"),
        ("buffers", "shared by ranks", shared, "hidden states of a pass, or logits of a batch", "language_model.cc"),
    ]
    return [
        Item(path=(kind, name), nbytes=nbytes, alive=RUNNING, why=why, source=source if "tape" in source else f"LMDeploy 0.16.0 {source}")
        for kind, name, nbytes, why, source in lines
    ]


def _vocabulary(tape: Tape) -> int:
    return int(next(w.shape[0] for w in tape.weights if w.kind == "head"))


def _width(tape: Tape) -> int:
    """heads · head_dim of a rank: what attention's last projection takes."""
    found = [w for w in tape.weights if w.part == "attention" and w.kind == "linear" and len(w.shape) == 2 and w.tower is None]
    return int(found[-1].shape[1]) if found else 0


def _heads(job: Job, degree: int) -> int:
    heads = job.model.text.get("num_attention_heads")
    return heads // degree if isinstance(heads, int) else 0
