"""SGLang: weights, pools for cache and state out of a fixed share of the GPU, and what runs in the rest: activations, graphs, buffers.

Nothing is profiled. mem_fraction_static (scenario key gpu_memory_utilization) of the memory that was free before the weights is theirs and
the pools'; where it isn't given, it follows from the GPU's memory, the prefill chunk and the batch sizes captured. It starts with one
token in the pool; "fits" asks that the pool holds one sequence of the longest length and that the rest holds what runs. Sources:
`model_runner.py` (profile_max_num_token, handle_max_mamba_cache, set_num_tokens_hybrid_swa), `server_args.py`
(_handle_gpu_memory_settings), `memory_pool.py` of SGLang 0.5.6. What it does not know: data-parallel attention, speculative drafts, LoRA
slots, pages of more than one token, images being encoded, weights that other kernels pad or repack, AMD's AITER
workspace (51.75 GiB in one log), kernels' warm-up (2 GiB of fp8 kernels in one log), caches compressed in steps (DeepSeek-V4), and
defaults of single models (an fp8 cache for sparse attention on Blackwell).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..catalog.gpus import Gpu
from ..errors import BadInput, Unknown
from ..formats import weights_nbytes
from ..kernels import Kernels
from ..ledger import Item, Moment
from ..parallel.pipeline import layers_from_the_end
from ..tape import Tape
from ..units import GiB, MiB, gib
from .advice import advised
from .job import MANY, Account, Device, Job, release
from .lines import SERVING, counted, text_caches, weight_items
from .mxfp4 import FLASHINFER as FLASHINFER_EXPERTS
from .mxfp4 import grown
from .ranks import SPLITS, ranks
from .sglang_advice import advice
from .sglang_defaults import fraction, tier
from .sglang_pools import RUNNING, SLOTS, Pools, pools

NAMES = ("sglang",)
ABOUT = (
    "0.5: mem_fraction_static and its default, cells, state pools, two pools for windows; TP, PP, EP; "
    "not: DP attention, drafts, LoRA slots, AMD's workspace"
)
VERSION = "0.5.6"

TAKEN = 7 * GiB // 10
"""What one process has before it loads weights: 0.63–0.79 GiB of an H100's 79.11 in logs of 2026 ("avail mem" 78.48, 78.43, 78.32)."""
TAKEN_CONSUMER = 3 * GiB // 10
"""The same on a consumer card: CUDA's context is smaller with fewer multiprocessors; 0.26 GiB of an RTX 5080's 15.42 in a log of 2025."""
TAKEN_SEVERAL = 17 * GiB // 10
"""With NCCL and the all-reduce buffers of several ranks: 1.4 to 1.8 GiB in three logs with eight ("avail mem" 77.75, 77.43, 77.33)."""
LOADED = 13 * GiB // 100
"""What loading takes beside the parameters: libraries, rotary tables, remainders of blocks; 0.06–0.15 GiB in logs of 0.6B, 8B."""
GRAPHS = GiB // 10
"""Least that graphs take: 0.06 (batches 1, 2, 4), 0.11 (1 to 8), 0.10 GiB (1 to 32) in logs; else SGLang's reserve, 2 MiB a batch."""
FLASHINFER, TRTLLM = 384 * MiB, 512 * MiB
"""Workspace of attention: SGLANG_FLASHINFER_WORKSPACE_SIZE in environ.py, DEFAULT_WORKSPACE_SIZE_MB in trtllm_mha_backend.py."""
KERNELS = Kernels(
    attention="flash", norm="fused", mlp="merged", rope="inplace", mla="absorbed", logits="last", frames="freed", recurrence="fused"
)


def account(job: Job) -> Account:
    """What `sglang.launch_server` takes on one GPU, what its pools hold, and what would make it start where it does not."""
    return advised(job, _account, advice)


def _account(job: Job) -> Account:
    s = job.scenario
    version = s.engine_version or VERSION
    running = _checked(job, version)
    context = job.context(default=job.model.context_length or 8192)
    chunk, few, many = tier(job.gpu, running)
    batched = s.max_batched_tokens or chunk
    whole = job.tape(sequences=1, tokens=batched, kernels=KERNELS, itemsize=job.itemsize)
    _poolable(job, whole)
    split = ranks(job, whole, "SGLang", layers_from_the_end)
    tower = job.model.config.get("vision_config")
    captured = few if split.tensor < 4 else many
    static = s.gpu_memory_utilization or fraction(job.gpu, tower, running, batched, captured, split.count)

    taken = TAKEN_SEVERAL if split.count > 1 else TAKEN_CONSUMER if job.gpu and job.gpu.kind == "consumer" else TAKEN
    budget = int((job.gpu.usable - taken) * static) if job.gpu else None
    stages = [Stage(weights=_weights(job, tape), pools=pools(job, tape)) for tape in split.stages]
    tokens, slots = _sizes(stages, budget)
    requests = _requests(s.sequences, tokens, slots, context, any(stage.pools.slot for stage in stages))
    graphs = 0 if s.eager else max(GRAPHS, 2 * MiB * min(captured, requests))
    padding = max(stage.pools.cell + stage.pools.slot for stage in stages)
    shared = [_context(taken), *_buffers(job, split.tape, batched, requests * (context + 4), graphs, padding)]
    held = [[*shared, *stage.weights, *stage.pools.request(context)] for stage in stages]
    worst = max(range(len(held)), key=lambda stage: sum(item.nbytes for item in held[stage]))
    account = Account(
        tape=whole,
        items=held[worst],
        rank=worst * split.tensor,
        count=split.tensor,
        filled={
            "engine_version": version,
            "sequences": requests,
            "max_batched_tokens": batched,
            "context_length": context,
            "gpu_memory_utilization": static,
            "eager": bool(s.eager),
        },
        facts={"activation_peak": split.tape.peak()[0], "cuda_graphs": graphs, "kv_bytes_per_token": stages[worst].pools.cell},
        assumptions=[
            f"SGLang {version}, mem_fraction_static {static:g}, at most {counted(requests, 'sequence')}, chunks of {batched:,} tokens",
            *split.assumed,
            *([] if s.context_length else [f"sequences of up to {context:,} tokens"]),
        ],
    )
    if job.gpu and budget is not None:
        _fill_pools(account, stages[worst], budget, job.gpu, taken, tokens, slots, context)
    account.others = [
        Device(rank=stage * split.tensor, count=split.tensor, gpu=job.gpu, room=account.room, items=items)
        for stage, items in enumerate(held)
        if stage != worst
    ]
    return account


def _checked(job: Job, version: str) -> tuple[int, int, int]:
    """The release, with its patch number. Raises BadInput as SGLang would refuse, and Unknown for what is not estimated."""
    job.refuse("data_parallel", "lora", "max_loras", *(key for key in MANY if key not in SPLITS))
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


# ---- line items --------------------------------------------------------------------------------------------------------
def _weights(job: Job, tape: Tape) -> list[Item]:
    """The parameters of a rank, and what loading takes beside them: SGLang logs both as "mem usage"."""
    source = "start-up logs: 1.25 against 1.11 (Qwen3-0.6B), 15.02–15.11 against 14.96 GiB (Llama-3.1-8B)"
    beside = Item(path=("weights", "beside parameters"), nbytes=LOADED, alive=SERVING, why="from logs, not derived", source=source)
    return [*weight_items(job, tape, SERVING), _padded(job, tape), beside]


def _padded(job: Job, tape: Tape) -> Item:
    """What experts in MXFP4 grow by on Blackwell, where FlashInfer's kernels want sizes in multiples of 256 (gpt-oss: 2,880 to 3,072)."""
    blackwell = job.gpu is not None and (job.gpu.compute_capability or "").startswith("10.")
    nbytes = grown(weights_nbytes(tape.weights, job.scheme), FLASHINFER_EXPERTS) if blackwell else 0
    why, source = "sizes rounded up to 256", "SGLang 0.5.6 layers/quantization/mxfp4.py create_weights"
    return Item(path=("weights", "experts", "padding"), nbytes=nbytes, alive=SERVING, why=why, source=source)


def _context(taken: int) -> Item:
    source = "SGLang's start-up logs: memory available when the weights begin to load"
    return Item(path=("cuda context",), nbytes=taken, alive=SERVING, why="one process, and NCCL with several ranks", source=source)


def _buffers(job: Job, tape: Tape, batched: int, places: int, graphs: int, padding: int) -> list[Item]:
    """What runs beside the pools: a prefill chunk, the graphs, the attention's workspace, the table of `places` for tokens."""
    forward, where = tape.peak()
    latent = any(cache.name == "latent" for cache in tape.caches)
    return [
        Item(
            path=("activations", "forward"), nbytes=forward, alive=frozenset({Moment.PREFILL}),
            why=f"a prefill chunk of {batched:,} tokens, most alive at {where}", source="the tape's forward pass",
        ),
        Item(
            path=("cuda graphs",), nbytes=graphs, alive=RUNNING, why="the larger of 0.1 GiB and 2 MiB for each sequence captured",
            source="start-up logs, and what SGLang 0.5.6 server_args.py reserves",
        ),
        Item(
            path=("buffers", "attention workspace"), nbytes=_workspace(job.gpu, latent), alive=RUNNING, why="of the default backend",
            source="SGLang 0.5.6 environ.py, trtllm_mha_backend.py",
        ),
        Item(
            path=("buffers", "request table"), nbytes=4 * places, alive=RUNNING, why=f"requests × (context + 4) = {places:,}, 4 B each",
            source="SGLang 0.5.6 memory_pool.py ReqToTokenPool",
        ),
        Item(
            path=("buffers", "padding"), nbytes=padding, alive=RUNNING, why="the first place of each pool, for padding",
            source="SGLang 0.5.6 memory_pool.py",
        ),
    ]  # fmt: skip


def _workspace(gpu: Gpu | None, latent: bool) -> int:
    """Bytes of the default attention backend's workspace on NVIDIA's GPUs.

    FlashInfer's; none with FA3 on Hopper, nor with Triton, which latents get on older GPUs; TRT-LLM's for keys and values on B200.
    """
    capability = (gpu.compute_capability or "") if gpu else ""
    if capability == "9.0" or (gpu and gpu.vendor not in ("nvidia", "")):
        return 0
    if capability.startswith("10."):
        return FLASHINFER if latent else TRTLLM
    return 0 if latent else FLASHINFER
