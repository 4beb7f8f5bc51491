"""TensorRT-LLM (PyTorch backend): weights, one profiled pass, and a pool of 0.9 of what that leaves free, in blocks of 32 tokens.

Before it sizes the pool it runs max_num_tokens tokens through the model and takes the peak of everything on the GPU; pool = fraction ×
(memory − peak). Keys and values of every layer are kept whole, windows or not, unless max_attention_window is given. Source:
`tensorrt_llm/_torch/pyexecutor/_util.py` (KvCacheCreator: _cal_max_memory, _create_dummy_context_requests), `llmapi/llm_args.py`
(KvCacheConfig, TorchLlmArgs), `mapping.py` of TensorRT-LLM 1.2. What it does not know: engines that TensorRT builds (before 1.0, whose
activations its builder fixes), CUDA graphs and workspaces of attention, MoE and all-reduce, attention data parallelism, drafts, LoRA,
images being encoded, NVFP4 caches, recurrent states.
"""

from __future__ import annotations

from ..dim import numel
from ..errors import BadInput, Unknown
from ..formats.kv import kv_bytes
from ..kernels import Kernels
from ..ledger import Item
from ..tape import Tape
from ..tensors import Cache
from .cuda_context import context_item
from .free_share import Stage, fill, paged_only, request_items
from .job import MANY, Account, Job, release
from .lines import SERVING, counted, kv_type, text_caches, weight_items
from .ranks import SPLITS, ranks

NAMES = ("tensorrt-llm",)
ABOUT = (
    "PyTorch backend 1.x: free_gpu_memory_fraction after a profiled pass, blocks; TP, PP, EP; not: TensorRT engines, graphs, workspaces, "
    "drafts, states; pool rule by two published logs, the rest not validated by measurement"
)
VERSION = "1.2"
OLDEST = (1, 0)

FRACTION = 0.9
"""KvCacheConfig.free_gpu_memory_fraction."""
BLOCK = 32
"""KvCacheConfig.tokens_per_block."""
BATCH, BATCHED = 2048, 8192
"""max_batch_size and max_num_tokens: `llmapi/llm_args.py`."""
KERNELS = Kernels(attention="flash", norm="fused", mlp="merged", rope="inplace", mla="absorbed", logits="last", frames="freed")


def account(job: Job) -> Account:
    """What `trtllm-serve` takes on each GPU, and what its pool holds."""
    s = job.scenario
    version = s.engine_version or VERSION
    _checked(job, version)
    context = job.context(default=job.model.context_length or 8192)
    batch, batched = s.sequences or BATCH, s.max_batched_tokens or BATCHED
    fraction = s.gpu_memory_utilization or FRACTION
    whole = job.tape(sequences=1, tokens=batched, kernels=KERNELS, itemsize=job.itemsize)
    paged_only(job, whole, "TensorRT-LLM")
    split = ranks(job, whole, "TensorRT-LLM", _layers)
    activations = _activations(split.tape, batched)
    stages = [_stage(job, tape, activations, context, split.count) for tape in split.stages]
    account = Account(
        tape=whole,
        items=stages[0].items,
        count=split.tensor,
        filled={
            "engine_version": version,
            "sequences": batch,
            "max_batched_tokens": batched,
            "context_length": context,
            "gpu_memory_utilization": fraction,
        },
        facts={"activation_peak": activations.nbytes, "kv_bytes_per_token": max(stage.token for stage in stages)},
        assumptions=[
            f"TensorRT-LLM {version}, PyTorch backend: free_gpu_memory_fraction {fraction:g}, at most {counted(batch, 'sequence')}, "
            f"{batched:,} tokens in a pass",
            *split.assumed,
            *([] if s.context_length else [f"sequences of up to {context:,} tokens"]),
        ],
        remarks=["CUDA graphs and workspaces of its kernels are not counted: give the rest some room"],
    )
    if job.gpu:
        fill(account, stages, job.gpu, fraction=fraction, block=BLOCK, context=context, ranks=split.tensor, name="TensorRT-LLM")
    return account


def _checked(job: Job, version: str) -> None:
    """Raises BadInput as TensorRT-LLM would refuse, and Unknown for what is not estimated."""
    job.refuse(*(key for key in MANY if key not in SPLITS))
    job.generates_only()
    job.only_formats("fp8", "nvfp4", "modelopt", "mxfp4", "awq", "gptq", "compressed-tensors")
    job.kv_types("bf16", "fp16", "fp8")
    if isinstance(job.scenario.kv_dtype, dict):
        raise BadInput("kv_dtype: TensorRT-LLM's kv_cache_config.dtype is one for keys and values: auto, fp8")
    if job.gpu is not None and job.gpu.vendor not in ("nvidia", ""):
        raise BadInput(f"gpu {job.gpu.name}: TensorRT-LLM runs on NVIDIA's GPUs")
    if release(version) < OLDEST:
        raise Unknown(
            f"engine_version {version!r}: TensorRT-LLM before 1.0, whose engines TensorRT builds, is not estimated by this version"
        )


def _layers(stage: int, stages: int, depth: int) -> range:
    """As torch.tensor_split: the first stages have one layer more where the depth does not divide (`mapping.py` pp_layers)."""
    share, more = divmod(depth, stages)
    first = stage * share + min(stage, more)
    return range(first, first + share + (stage < more))


def _activations(tape: Tape, batched: int) -> Item:
    forward, where = tape.peak()
    return Item(
        path=("activations", "profiled pass"),
        nbytes=forward,
        alive=SERVING,
        why=f"a pass of {batched:,} tokens, most alive at {where}, before the pool is sized",
        source="the tape's forward pass",
    )


def _stage(job: Job, tape: Tape, activations: Item, context: int, count: int) -> Stage:
    def token(cache: Cache) -> int:
        elements, nbytes = kv_bytes(kv_type(job.scenario.kv_dtype, cache.side, job.dtype))
        return numel(cache.shape) * nbytes // elements

    blocks = -(-context // BLOCK) * BLOCK
    return Stage(
        before=[*weight_items(job, tape, SERVING), activations, context_item(job.gpu, SERVING, count)],
        after=[],
        token=sum(token(cache) * len(cache.layers) for cache in text_caches(tape)),
        caches=request_items(tape, blocks, token, "TensorRT-LLM 1.2 resource_manager.py get_cache_size_per_token"),
    )
