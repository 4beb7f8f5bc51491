"""Sparse attention over latents (DeepSeek-V3.2 and what is built like it): what an engine keeps of a token beside bf16 latents.

Sources: vLLM 0.21.0 models/deepseek_v2.py DeepseekV32IndexerCache, v1/kv_cache_interface.py MLAAttentionSpec; SGLang 0.5.6
mem_cache/memory_pool.py NSATokenToKVPool, `calculate_mla_kv_cache_dim`.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..dim import numel
from ..tensors import Cache
from .job import Job


def is_sparse(caches: Iterable[Cache]) -> bool:
    """Whether keys of an indexer are cached beside latents."""
    return {"latent", "indexer keys"} <= {cache.name for cache in caches}


def sparse_token(job: Job, cache: Cache, nbytes: int) -> int:
    """Bytes of a token in one layer, `nbytes` by its number format: the indexer's keys are in fp8 with a float for each 128.

    With an fp8 cache latents are too, and rotary keys stay in bf16.
    """
    width = numel(cache.shape)
    if cache.name == "indexer keys":
        return width + width // 128 * 4
    if nbytes != width:
        return nbytes
    rank = job.model.text.get("kv_lora_rank", 512)
    rank = rank if isinstance(rank, int) else 512
    return rank + rank // 128 * 4 + 2 * (width - rank)
