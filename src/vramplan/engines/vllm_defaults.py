"""vLLM's defaults by release and GPU, and what it refuses before it starts, in its own words.

What it does not know: defaults for Python's LLM class (twice the tokens), for AMD's and Intel's GPUs, for embedding models.
Sources: vLLM engine/arg_utils.py, config.py at 0.6.4 and 0.8.5; engine/arg_utils.py, config/ at 0.11.0, 0.19.0 and 0.21.0.
"""

from __future__ import annotations

from ..errors import BadInput, Unknown
from ..tape import Tape
from ..units import GiB
from .job import MANY, Job, release
from .ranks import SPLITS

VERSION = "0.21.0"
OLDEST = (0, 5)
V1 = (0, 8)
"""The first release whose default is V1; what V1 does not run falls back to V0 until 0.10 (GPUs before Ampere among it)."""
V1_ONLY = (0, 11)
UTILIZATION = 0.9
"""`gpu_memory_utilization`'s default: vllm/config/cache.py (0.92 since no release that we know)."""
CHUNKED = 32768
"""V0 cuts prompts into chunks where the longest sequence exceeds this: `create_engine_config`, engine/arg_utils.py at 0.6.4."""
KV_TYPES = ("bf16", "fp16", "fp32", "fp8")
"""`kv_cache_dtype`: vllm/config/cache.py CacheDType; the floats by way of `auto` and the model's dtype."""
BLOCKS = (1, 8, 16, 32, 64, 128, 256)
"""`block_size`: vllm/config/cache.py at 0.11.0."""


def running(job: Job, version: str) -> tuple[int, int]:
    """The release, as what it runs: (0, 7), the last of V0, where a release up to 0.10 falls back to it."""
    found = release(version)
    if found < OLDEST:
        raise Unknown(f"engine_version {version!r}: vLLM before 0.5 is not estimated by this version")
    capability = job.gpu.compute_capability if job.gpu else None
    old = capability is not None and job.gpu is not None and job.gpu.vendor == "nvidia" and float(capability) < 8
    return (0, 7) if V1 <= found < V1_ONLY and old else found


def latents(tape: Tape, release: tuple[int, int]) -> None:
    """Raises Unknown for models with latent attention before V1: 0.7.0 and earlier kept whole heads, padded."""
    if release < V1 and any(cache.name == "latent" for cache in tape.caches):
        raise Unknown("engine_version: latent attention (MLA) before vLLM 0.8, or on GPUs before Ampere, is not estimated by this version")


def batch(job: Job, release: tuple[int, int], context: int) -> tuple[int, int]:
    """`max_num_seqs` and `max_num_batched_tokens` of `vllm serve`."""
    s = job.scenario
    large = job.gpu is not None and job.gpu.usable >= 70 * GiB and "a100" not in job.gpu.name.lower()
    if release < V1:
        tokens = s.max_batched_tokens or ((512 if release < (0, 7) else 2048) if context > CHUNKED else max(context, 2048))
        return s.sequences or 256, tokens
    tokens = s.max_batched_tokens or (8192 if large else 2048)
    sequences = s.sequences or min(1024 if large else 256, tokens)
    if s.max_batched_tokens is None:
        tokens = min(tokens, sequences * context)
    if tokens < sequences:
        raise BadInput(
            f"max_batched_tokens {tokens:,} (--max-num-batched-tokens): must be greater than or equal to max_num_seqs ({sequences:,})"
        )
    return sequences, tokens


def largest_graph(job: Job, release: tuple[int, int]) -> int:
    """`max_cudagraph_capture_size`: 512, but gpt-oss' 1,024 (GptOssForCausalLMConfig, model_executor/models/config.py since 0.10)."""
    return 1024 if job.model.text.get("model_type") == "gpt_oss" and release >= (0, 10) else 512


def check(job: Job) -> None:
    """Raises BadInput for what vLLM refuses, and Unknown for what is not estimated."""
    s = job.scenario
    job.refuse(*(key for key in MANY if key not in (*SPLITS, "draft_model")))
    job.refuse_formats("mlx", "exl2", "exl3")
    job.kv_types(*KV_TYPES)
    if job.gpu is not None and job.gpu.vendor == "apple":
        raise BadInput(f"gpu {job.gpu.name}: vLLM does not run on Apple's GPUs; choose --engine llama.cpp")
    own = job.model.context_length
    if s.context_length and own and s.context_length > own:
        raise BadInput(
            f"context_length {s.context_length:,} (--max-model-len): greater than the derived max_model_len {own:,} of {job.model.id}; "
            "vLLM takes it only with VLLM_ALLOW_LONG_MAX_MODEL_LEN=1"
        )
    if s.block_size and s.block_size not in BLOCKS:
        raise BadInput(f"block_size {s.block_size} (--block-size): vLLM has {', '.join(map(str, BLOCKS))}")
    if s.draft_model and (s.pipeline_parallel or 1) > 1:
        raise Unknown("draft_model with pipeline_parallel: not estimated for engine 'vllm' by this version")
    heads, tensor = job.model.text.get("num_attention_heads"), s.tensor_parallel or 1
    if isinstance(heads, int) and heads % tensor:
        raise BadInput(
            f"tensor_parallel {tensor} (--tensor-parallel-size): total number of attention heads ({heads}) must be divisible by it"
        )
