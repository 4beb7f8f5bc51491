"""SGLang: weights, pools for cache and state out of a fixed share of the GPU, and what runs in the rest: activations, graphs, buffers.

Nothing is profiled. mem_fraction_static (scenario key gpu_memory_utilization) of the memory that was free before the weights is theirs and
the pools'; where it isn't given, it follows from the GPU's memory, the prefill chunk and the batch sizes captured. It starts with one
token in the pool; "fits" asks that the pool holds one sequence of the longest length and that the rest holds what runs. Sources:
`model_runner.py` (profile_max_num_token, handle_max_mamba_cache, set_num_tokens_hybrid_swa), `server_args.py`
(_handle_gpu_memory_settings), `memory_pool.py` of SGLang 0.5.6. What it does not know: data-parallel attention, LoRA beside experts,
pages of more than one token, images being encoded, weights that other kernels pad or repack, AMD's AITER
workspace (51.75 GiB in one log), kernels' warm-up (2 GiB of fp8 kernels in one log), caches compressed in steps (DeepSeek-V4), and
defaults of single models (an fp8 cache for sparse attention on Blackwell).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..catalog.gpus import Gpu
from ..errors import BadInput, Unknown
from ..kernels import Kernels
from ..ledger import Item
from ..parallel.pipeline import layers_from_the_end
from ..tape import Tape
from ..units import GiB, MiB, gib
from .advice import advised
from .job import MANY, Account, Device, Job, release
from .lines import counted, text_caches
from .ranks import SPLITS, Ranks, ranks
from .sglang_advice import advice
from .sglang_defaults import fraction, tier
from .sglang_drafts import REQUESTS, Drafting, drafting
from .sglang_items import buffers, context_item, weights
from .sglang_pools import SLOTS, Pools, pools

NAMES = ("sglang",)
ABOUT = (
    "0.5: mem_fraction_static and its default, cells, state pools, two pools for windows; EAGLE, MTP and other drafts, LoRA slots; "
    "TP, PP, EP; not: DP attention, AMD's workspace"
)
VERSION = "0.5.6"

TAKEN = 7 * GiB // 10
"""What one process has before it loads weights: 0.63–0.79 GiB of an H100's 79.11 in logs of 2026 ("avail mem" 78.48, 78.43, 78.32)."""
TAKEN_CONSUMER = 3 * GiB // 10
"""The same on a consumer card: CUDA's context is smaller with fewer multiprocessors; 0.26 GiB of an RTX 5080's 15.42 in a log of 2025."""
TAKEN_SEVERAL = 17 * GiB // 10
"""With NCCL and the all-reduce buffers of several ranks: 1.4 to 1.8 GiB in three logs with eight ("avail mem" 77.75, 77.43, 77.33)."""
GRAPHS = GiB // 10
"""Least that graphs take: 0.06 (batches 1, 2, 4), 0.11 (1 to 8), 0.10 GiB (1 to 32) in logs; else SGLang's reserve, 2 MiB a batch."""
KERNELS = Kernels(
    attention="flash", norm="fused", mlp="merged", rope="inplace", mla="absorbed", logits="last", frames="freed", recurrence="fused"
)


def account(job: Job) -> Account:
    """What `sglang.launch_server` takes on one GPU, what its pools hold, and what would make it start where it does not."""
    return advised(job, _account, advice)


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What it starts with, by the scenario or by default: the longest `context`, tokens of a chunk (`batched`), the largest batch that is
    `captured` as a graph, and the share of the memory for weights and pools (`static`), of what is not `taken` before.
    """

    version: str
    context: int
    batched: int
    captured: int
    static: float
    taken: int
    whole: Tape
    split: Ranks
    drafts: Drafting

    def budget(self, gpu: Gpu | None) -> int | None:
        """Bytes for weights and pools on a rank; None without a GPU."""
        return int((gpu.usable - self.taken) * self.static) if gpu else None


def _start(job: Job) -> Start:
    s = job.scenario
    version = s.engine_version or VERSION
    running = _checked(job, version)
    chunk, few, many = tier(job.gpu, running)
    batched = s.max_batched_tokens or chunk
    whole = job.tape(sequences=1, tokens=batched, kernels=KERNELS, itemsize=job.itemsize)
    _poolable(job, whole)
    split = ranks(job, whole, "SGLang", layers_from_the_end)
    tower = job.model.config.get("vision_config")
    captured = few if split.tensor < 4 else many
    drafts = drafting(job, split, batched, KERNELS)
    return Start(
        version=version,
        context=job.context(default=job.model.context_length or 8192),
        batched=batched,
        captured=captured,
        static=s.gpu_memory_utilization or fraction(job.gpu, tower, running, batched, captured, split.count, drafts.reserve),
        taken=TAKEN_SEVERAL if split.count > 1 else TAKEN_CONSUMER if job.gpu and job.gpu.kind == "consumer" else TAKEN,
        whole=whole,
        split=split,
        drafts=drafts,
    )


def _account(job: Job) -> Account:
    s, start = job.scenario, _start(job)
    split, context, budget = start.split, start.context, start.budget(job.gpu)
    stages = [Stage(weights=weights(job, tape), pools=pools(job, tape)) for tape in split.stages]
    tokens, slots = _sizes(stages, budget)
    asked = s.sequences or (REQUESTS if s.draft_model else None)
    requests = _requests(asked, tokens, slots, context, any(stage.pools.slot for stage in stages))
    graphs = 0 if s.eager else max(GRAPHS, 2 * MiB * min(start.captured, requests))
    shared = _shared(job, start, stages, tokens, requests, graphs)
    held = [[*shared, *stage.weights, *stage.pools.request(context)] for stage in stages]
    worst = max(range(len(held)), key=lambda stage: sum(item.nbytes for item in held[stage]))
    account = Account(
        tape=start.whole,
        items=held[worst],
        rank=worst * split.tensor,
        count=split.tensor,
        filled={
            "engine_version": start.version,
            "sequences": requests,
            "max_batched_tokens": start.batched,
            "context_length": context,
            "gpu_memory_utilization": start.static,
            "eager": bool(s.eager),
        },
        facts={"activation_peak": split.tape.peak()[0], "cuda_graphs": graphs, "kv_bytes_per_token": stages[worst].pools.cell},
        assumptions=[_assumed(start, requests), *split.assumed, *([] if s.context_length else [f"sequences of up to {context:,} tokens"])],
    )
    if job.gpu and budget is not None:
        _fill_pools(account, stages[worst], budget, job.gpu, start.taken, tokens, slots, context)
    others = [stage for stage in range(len(held)) if stage != worst]
    account.others = [Device(rank=n * split.tensor, count=split.tensor, gpu=job.gpu, room=account.room, items=held[n]) for n in others]
    return account


def _assumed(start: Start, requests: int) -> str:
    most = f"at most {counted(requests, 'sequence')}, chunks of {start.batched:,} tokens"
    return f"SGLang {start.version}, mem_fraction_static {start.static:g}, {most}"


def _shared(job: Job, start: Start, stages: list[Stage], tokens: int, requests: int, graphs: int) -> list[Item]:
    """What every rank has beside its weights and pools."""
    padding = max(stage.pools.cell + stage.pools.slot for stage in stages)
    places = requests * (start.context + 4 + start.drafts.verified)
    beside = start.drafts.items(max(tokens, start.context), requests, stages[0].pools)
    return [context_item(start.taken), *beside, *buffers(job, start.split.tape, start.batched, places, graphs, padding)]


def _checked(job: Job, version: str) -> tuple[int, int, int]:
    """The release, with its patch number. Raises BadInput as SGLang would refuse, and Unknown for what is not estimated."""
    job.refuse("data_parallel", *(key for key in MANY if key not in (*SPLITS, "draft_model")))
    job.refuse_formats("mlx", "exl2", "exl3")
    job.kv_types("bf16", "fp8")
    kv = job.scenario.kv_dtype
    if isinstance(kv, Mapping) and kv["k"] != kv["v"]:
        raise BadInput(f"kv_dtype {kv['k']!r} and {kv['v']!r}: SGLang's --kv-cache-dtype is one for keys and values")
    if job.gpu is not None and job.gpu.vendor == "apple":
        raise BadInput(f"gpu {job.gpu.name}: SGLang does not run on Apple's GPUs; choose --engine llama.cpp")
    experts, ranked = job.scenario.expert_parallel or 1, job.scenario.tensor_parallel or job.scenario.gpu_count or 1
    if 1 < experts < ranked and ranked % experts == 0:
        raise Unknown(
            f"expert_parallel {experts}: fewer than the {ranked} tensor-parallel ranks is not estimated for SGLang by this version"
        )
    own, heads, tensor = job.model.context_length, job.model.text.get("num_attention_heads"), job.scenario.tensor_parallel or 1
    if job.scenario.context_length and own and job.scenario.context_length > own:
        raise BadInput(
            f"context_length {job.scenario.context_length:,} (--context-length): greater than the derived context_length {own:,} of "
            f"{job.model.id}; SGLang takes it only with SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1"
        )
    if isinstance(heads, int) and heads % tensor:
        raise BadInput(f"tensor_parallel {tensor} (--tp-size): the number of attention heads ({heads}) must be divisible by it")
    major, minor = release(version)
    if (major, minor) < (0, 5):
        raise Unknown(f"engine_version {version!r}: SGLang before 0.5 is not estimated by this version")
    patch = re.match(r"v?\d+\.\d+\.(\d{1,6})", version, re.ASCII)
    return major, minor, int(patch[1]) if patch else 0


def _poolable(job: Job, tape: Tape) -> None:
    """Raises Unknown for models without a cache of tokens, and for caches that are compressed or kept once a sequence."""
    attention = [cache for cache in text_caches(tape) if cache.side != "state"]
    if not attention:
        raise Unknown(f"{job.model.id}: keeps no tokens, which SGLang's pools are for; this version estimates it for other engines")
    if any(cache.stride > 1 or cache.per == "sequence" for cache in attention):
        raise Unknown(f"{job.model.id}: SGLang's pools for a compressed cache are not estimated by this version")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A rank of a pipeline's stage: its weights and its pools."""

    weights: list[Item]
    pools: Pools

    def rest(self, budget: int) -> int:
        """Bytes that the weights leave to the pools."""
        return budget - sum(item.nbytes for item in self.weights)


def _sizes(stages: list[Stage], budget: int | None) -> tuple[int, int]:
    """Tokens and states of the pools: the fewest of all stages, as all ranks take the minimum."""
    if budget is None:
        return 0, 0
    slots = min(stage.pools.slots(stage.rest(budget)) for stage in stages)
    return min(stage.pools.size(stage.rest(budget), slots) for stage in stages), slots


def _requests(asked: int | None, tokens: int, slots: int, context: int, recurrent: bool) -> int:
    """`max_running_requests`: as asked, else 512 contexts' worth of tokens within 2,048 and 4,096; with states no more than slots / 3."""
    most = asked or min(max(int(tokens / context * 512), 2048), 4096)
    return min(most, max(slots // SLOTS, 1)) if recurrent and slots else most


def _fill_pools(account: Account, stage: Stage, budget: int, gpu: Gpu, taken: int, tokens: int, slots: int, context: int) -> None:
    """What the pools hold, and the room: short where a sequence exceeds the pools, or what runs exceeds the memory that they leave."""
    peak = sum(item.nbytes for item in account.items)
    need = sum(item.nbytes for item in stage.pools.request(context))
    static = taken + sum(item.nbytes for item in stage.weights) + need
    rest = stage.rest(budget)
    spare = max(rest - need, 0)
    inside = taken + budget + peak - static
    exceeds = peak + spare > gpu.usable
    account.room = min(inside, gpu.usable - spare) if exceeds else inside
    account.facts |= {
        "kv_tokens": tokens,
        "kv_cache": stage.pools.nbytes(tokens),
        "process": peak + spare,
        **({"state_pool": (slots + 1) * stage.pools.slot} if stage.pools.slot else {}),
    }
    if tokens == 0:
        account.remarks.append("SGLang would not start: Not enough memory. Please try to increase --mem-fraction-static.")
    else:
        held = f"{gib(stage.pools.nbytes(tokens))} holds {tokens:,} tokens: {tokens / context:.1f} sequences of {context:,}"
        account.remarks.append(f"the cache pool of {held}" + (f"; {slots:,} slots for states" if stage.pools.slot else ""))
    if exceeds and rest >= need:
        account.remarks.append("what runs beside the pools exceeds what they leave")
    if gpu.vendor == "amd":
        account.remarks.append("AMD: AITER attention's workspace comes on top and is not counted")
