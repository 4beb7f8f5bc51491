"""vLLM (V1): weights, the profile run's peak, what torch does not see, and a cache pool of whatever is left of the budget.

The budget is gpu_memory_utilization × the GPU's memory; cache pool = budget − weights − activation peak − non-torch memory (− CUDA graphs
since 0.21). It fits if the pool holds one sequence of the longest length, which is what vLLM checks when it starts. Sources:
`gpu_worker.py`, `gpu_model_runner.py` (vllm.v1.worker), `kv_cache_utils.py` (vllm.v1.core), and 60 start-up logs of vLLM 0.19.0 on H100
(jgchn/llm-d-planner, commit d3121e0). Each rank of a tensor-parallel group has its share of weights, cache and activations; ranks of a
pipeline differ by their layers. What it does not know: data parallelism, LoRA slots, speculative drafts, images in the profile run, V0.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from ..dim import numel
from ..errors import BadInput, Unknown
from ..ledger import Item, Moment
from ..tape import Cache, Kernels, Tape
from ..units import GiB, gib
from .job import MANY, Account, Device, Job, release
from .lines import SERVING, cache_items, cache_nbytes, counted, kv_type, text_caches, weight_items
from .ranks import SPLITS, Ranks, ranks

NAMES = ("vllm",)
ABOUT = (
    "V1 (0.11 and later): pool, pages, windows, hybrid groups; TP, PP, EP; not: data parallelism, LoRA slots, drafts, images when profiling"
)
VERSION = "0.21.0"
OLDEST = (0, 11)
GRAPHS_COUNTED = (0, 21)
"""Since then CUDA graphs are profiled and subtracted from the budget ("CUDA graph memory profiling is enabled (default since v0.21.0)")."""
OUTSIDE = "outside the budget"

UTILIZATION = 0.9
"""`gpu_memory_utilization`'s default: vllm/config/cache.py."""
BLOCK = 16
"""Tokens per page on CUDA: vllm/config/cache.py `DEFAULT_BLOCK_SIZE`."""
NON_TORCH = ((1, GiB // 4), (2, 209 * GiB // 100), (4, 217 * GiB // 100))
"""Growth of the device's use that torch does not see, from so many tensor-parallel ranks on. Medians of logs of 0.19.0 on H100: 0.24–0.46
(43 with one), 2.06–2.11 (10 with two), 2.13–2.21 GiB (5 with four: NCCL's and the custom all-reduce's buffers)."""
PIPELINED = 7 * GiB // 100
"""The same on a stage of a pipeline without tensor parallelism: 0.07 GiB in 2 logs of 0.19.0."""
CONTEXT = 548 * GiB // 1024
"""Already taken when vLLM starts (CUDA context): 0.51 GiB in llm-d-planner's H100 logs, with one GPU."""
CONTEXT_AND_NCCL = 3 * GiB // 2
"""With several: about 1.5 GiB in the same logs."""
GRAPHS = 91 * GiB // 100
"""51 piecewise and the full decode graphs: 0.67–1.84, median 0.91 GiB in 43 logs of 0.19.0 with one H100. Not derived from the model."""
KV_TYPES = ("bf16", "fp16", "fp32", "fp8")
"""`kv_cache_dtype`: vllm/config/cache.py CacheDType; the floats by way of `auto` and the model's dtype."""
KERNELS = Kernels(attention="flash", norm="fused", mlp="merged", rope="inplace", mla="absorbed", logits="last", frames="freed")


def account(job: Job) -> Account:
    """What `vllm serve` takes on one GPU, and what its pool holds."""
    s = job.scenario
    version = s.engine_version or VERSION
    running = _checked(job, version)
    large = job.gpu is not None and job.gpu.usable >= 70 * GiB and "a100" not in job.gpu.name.lower()
    max_seqs = s.sequences or (1024 if large else 256)
    batched = s.max_batched_tokens or (8192 if large else 2048)
    context = job.context(default=job.model.context_length or 8192)
    utilization = s.gpu_memory_utilization or UTILIZATION

    whole = job.tape(sequences=1, tokens=batched, kernels=KERNELS, itemsize=job.itemsize)
    split = ranks(job, whole, "vLLM")
    activations = _activations(split.tape.peak(), job, max_seqs, batched, running)
    graphs = 0 if s.eager else GRAPHS
    shapeless = _shapeless(graphs, split, inside=running >= GRAPHS_COUNTED)
    stages = []
    for tape in split.stages:
        fixed = [*weight_items(job, tape, SERVING), *_rotary(job, whole), activations, *shapeless]
        stages.append((fixed, _request_items(text_caches(tape), context, batched, s.kv_dtype, job.dtype)))
    worst = max(range(len(stages)), key=lambda stage: sum(item.nbytes for items in stages[stage] for item in items))
    fixed, request = stages[worst]
    account = Account(
        tape=whole,
        items=[*fixed, *request],
        rank=worst * split.tensor,
        count=split.tensor,
        filled={
            "engine_version": version,
            "sequences": max_seqs,
            "max_batched_tokens": batched,
            "context_length": context,
            "gpu_memory_utilization": utilization,
            "eager": bool(s.eager),
        },
        facts={"activation_peak": activations.nbytes, "non_torch": _non_torch(split), "cuda_graphs": graphs},
        assumptions=[
            f"vLLM {version}, at most {counted(max_seqs, 'sequence')} and {batched:,} tokens per pass, {utilization:g} of the GPU",
            *split.assumed,
            *_context_assumed(job, context),
        ],
    )
    if job.gpu is not None:
        _fill_pool(account, job.gpu.usable, int(utilization * job.gpu.usable), fixed, sum(item.nbytes for item in request), context)
    account.others = [
        Device(rank=stage * split.tensor, count=split.tensor, gpu=job.gpu, room=account.room, items=[*items, *pages])
        for stage, (items, pages) in enumerate(stages)
        if stage != worst
    ]
    return account


def _non_torch(split: Ranks) -> int:
    """What torch does not see, by the number of tensor-parallel ranks."""
    if split.tensor == 1 < len(split.stages):
        return PIPELINED
    return next(nbytes for least, nbytes in reversed(NON_TORCH) if split.tensor >= least)


def _checked(job: Job, version: str) -> tuple[int, int]:
    """The release. Raises BadInput and Unknown as vLLM itself would refuse, and for what is not estimated."""
    job.refuse(*(key for key in MANY if key not in SPLITS))
    job.refuse_formats("mlx", "exl2", "exl3")
    job.kv_types(*KV_TYPES)
    if job.gpu is not None and job.gpu.vendor == "apple":
        raise BadInput(f"gpu {job.gpu.name}: vLLM does not run on Apple's GPUs; choose --engine llama.cpp")
    running = release(version)
    if running < OLDEST:
        raise Unknown(f"engine_version {version!r}: vLLM before 0.11 is not estimated by this version")
    return running


def _rotary(job: Job, tape: Tape) -> list[Item]:
    """Cosines and sines of every position, whole on each rank and part of what vLLM logs as weights: [max_position, rotated] each.

    Twice where local layers have their own, and for four times as many positions where these are multimodal. Source: vLLM 0.21
    layers/rotary_embedding/base.py `_compute_cos_sin_cache`, mrope.py `cache_max_position_num`.
    """
    text = job.model.text
    rope = text.get("rope_parameters") or text.get("rope_scaling")
    tables = (2 if "rope_local_base_freq" in text else 1) * (4 if isinstance(rope, Mapping) and "mrope_section" in rope else 1)
    positions, width = _size(text, "max_position_embeddings") or job.model.context_length or 0, sum(tape.rotated)
    nbytes = tables * positions * width * job.itemsize
    why = f"{tables} × {positions:,} positions × {width} × {job.itemsize} B"
    source = "vLLM 0.21 layers/rotary_embedding/base.py"
    return [Item(path=("weights", "rotary table"), nbytes=nbytes, alive=SERVING, why=why, source=source)]


def _shapeless(graphs: int, split: Ranks, *, inside: bool) -> list[Item]:
    """What has no shape: memory that torch does not see, CUDA graphs (`inside` the budget or not), the context."""
    source = "start-up logs of vLLM 0.19.0 on H100: a median by the number of ranks"
    other = Item(path=("non-torch",), nbytes=_non_torch(split), alive=SERVING, why="NCCL, cuBLAS and kernels", source=source)
    where, alive = "budget" if inside else OUTSIDE, frozenset({Moment.DECODE})
    source = "43 start-up logs of vLLM 0.19.0 on H100: 0.67–1.84, median 0.91 GiB; counted in the budget since 0.21"
    captured = Item(path=("cuda graphs", where), nbytes=graphs, alive=alive, why="a median, not derived", source=source)
    source = "0.51 GiB in vLLM's starting snapshot on H100; about 0.3 GiB on consumer cards"
    context = Item(
        path=("cuda context", OUTSIDE),
        nbytes=CONTEXT if split.count == 1 else CONTEXT_AND_NCCL,
        alive=SERVING,
        why="one process",
        source=source,
    )
    return [other, captured, context]


def _fill_pool(account: Account, usable: int, budget: int, fixed: list[Item], need: int, context: int) -> None:
    """The cache pool is what the budget has left; it must hold one sequence of `context` tokens, which takes `need` bytes."""
    outside = sum(item.nbytes for item in fixed if OUTSIDE in item.path)
    inside = sum(item.nbytes for item in fixed) - outside
    pool = budget - inside
    account.room = min(budget + outside, usable)
    account.facts["kv_cache"] = max(pool, 0)
    account.facts["process"] = inside + outside + max(pool, need)
    if need:
        tokens = account.facts["kv_tokens"] = max(pool, 0) * context // need
        if pool > 0:
            account.remarks.append(f"the cache pool of {gib(pool)} holds {tokens:,} tokens: {pool / need:.1f} sequences of {context:,}")


def _context_assumed(job: Job, context: int) -> list[str]:
    """What was taken for the longest sequence where the user left it open."""
    if job.scenario.context_length is not None:
        return []
    own = "the model's own maximum" if job.model.context_length else "a guess, as nothing states the model's own"
    return [f"sequences of up to {context:,} tokens: {own}"]


def _activations(forward: tuple[int, str], job: Job, max_seqs: int, batched: int, running: tuple[int, int]) -> Item:
    """The profile run's peak: the larger of one forward pass of `batched` tokens and the sampler over `max_seqs` rows of logits.

    Sampler: 14.49 B × sequences × vocabulary (38.0 B up to 0.16) + 2.34 B × tokens × hidden + 0.042 GiB, fitted on 11 text-only models of
    the 0.19.0 logs with a residual of at most 0.007 GiB, and on 7 of 0.11; multimodal models lie up to 0.23 GiB above it.
    """
    text = job.model.text
    vocab, hidden = _size(text, "vocab_size"), _size(text, "hidden_size")
    per_logit = 14.49 if running >= (0, 17) else 38.0
    sampler = int(per_logit * max_seqs * vocab + 2.34 * batched * hidden + 0.042 * GiB)
    if sampler >= forward[0]:
        why = f"sampler: {per_logit} B × {max_seqs:,} sequences × {vocab:,} tokens + 2.34 B × {batched:,} × {hidden:,} + 0.042 GiB"
        source = "fitted on 11 text-only models of the 0.19.0 logs on H100 (residual ≤ 0.007 GiB)"
        return Item(path=("activations", "sampler"), nbytes=sampler, alive=SERVING, why=why, source=source)
    why = f"forward pass of {batched:,} tokens, most alive at {forward[1]}"
    return Item(path=("activations", "forward"), nbytes=forward[0], alive=SERVING, why=why, source="the tape's forward pass")


def _size(config: object, key: str) -> int:
    value = config.get(key) if isinstance(config, dict) else None
    return value if isinstance(value, int) else 0


def _request_items(caches: list[Cache], context: int, batched: int, kv_dtype: object, default: str) -> list[Item]:
    """Pages that one sequence of `context` tokens is charged, by kind of layer.

    Layers of several kinds go into groups of one size, the smallest count of a kind, or the largest where counts differ by less than 1.5 ×;
    padding layers are charged (`_get_kv_cache_groups_uniform_page_size`). A full layer is charged ceil(context / 16) pages, a sliding one
    ceil(min(window − 1 + tokens per pass, context) / 16) + 1 pages (`SlidingWindowSpec.max_memory_usage_bytes`), a recurrent one its state.
    """
    items = []
    paged = [cache for cache in caches if cache.side != "state"]
    counts = {cache.window: len(cache.layers) for cache in paged}
    group = 1
    if len(counts) > 1:
        low, high = min(counts.values()), max(counts.values())
        group = high if high < 1.5 * low else low
    for cache in paged:
        dtype = kv_type(kv_dtype, cache.side, default)
        layers = ceil(len(cache.layers) / group) * group
        if cache.window is None:
            pages = ceil(context / BLOCK)
        else:
            pages = ceil(min(int(cache.window) - 1 + batched, context) / BLOCK) + 1
        tokens = pages * BLOCK // cache.stride
        nbytes = cache_nbytes(cache, tokens, dtype) // len(cache.layers) * layers
        padding = f" ({layers - len(cache.layers)} of them padding)" if layers > len(cache.layers) else ""
        per_layer = numel(cache.shape)
        page = f"{BLOCK} tokens" if cache.stride == 1 else f"{BLOCK} / {cache.stride} tokens"
        why = f"1 sequence × {counted(layers, 'layer')}{padding} × {pages:,} pages × {page} × {per_layer:,} elements in {dtype}"
        kind = "full attention" if cache.window is None else "window"
        source = "vllm/v1/core/kv_cache_utils.py: equal groups, pages of 16 tokens"
        items.append(Item(path=("kv cache", kind, cache.name), nbytes=nbytes, alive=frozenset({Moment.DECODE}), why=why, source=source))
    states = [cache for cache in caches if cache.side == "state"]
    source = "vllm MambaSpec: one page per layer and sequence"
    items += cache_items(states, lambda _: (1, 1, ""), kv_dtype=None, default=default, alive=frozenset({Moment.DECODE}), source=source)
    return items
