"""Number formats of the KV cache, as blocks of (elements, bytes)."""

from __future__ import annotations

from ..errors import NotFound, nearest
from .dtypes import ALIASES, BYTES
from .ggml import BLOCKS

FLOATS = ("bf16", "fp16", "fp32", "fp8")
GGML = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")
"""Cache types of llama.cpp beside f32, f16 and bf16. Source: llama.cpp `common/arg.cpp`, `kv_cache_types`."""

EXLLAMA = {f"q{bits}": (32, 4 * bits + 2) for bits in range(2, 9)}
"""ExLlama's: a scale of 2 B for each 32 elements. Source: exllamav3 1.4.1 `cache/quant.py`; exllamav2 0.3.2 `cache.py` (q4 and q8)."""
MLX = {f"mlx-{bits}bit": (64, 8 * bits + 4) for bits in (2, 3, 4, 6, 8)}
"""MLX's in groups of 64, each with a scale and a bias of 2 B. Source: mlx-lm 0.32 `models/cache.py` QuantizedKVCache."""
INTEGERS = {"int8": (1, 1), "int4": (2, 1)}
"""Integers alone: what stands beside them (LMDeploy: a scale and a zero point for each token and head) the engine adds."""


def kv_bytes(dtype: str, *, auto: str = "bf16") -> tuple[int, int]:
    """(elements, bytes) of a block of the cache type `dtype`; `auto` is the model's own dtype.

    A scale per tensor or layer (fp8) is too small to count. Raises NotFound for an unknown type, with the nearest.

    >>> kv_bytes("fp8"), kv_bytes("q8_0"), kv_bytes("auto"), kv_bytes("fp8_e5m2")
    ((1, 1), (32, 34), (1, 2), (1, 1))
    """
    name = dtype.lower().removeprefix("torch.")
    name = auto if name == "auto" else name
    name = ALIASES.get(name, name)
    if name in GGML:
        return BLOCKS[name.upper()]
    if name in FLOATS:
        return 1, BYTES[name]
    others = {**EXLLAMA, **MLX, **INTEGERS}
    if name in others:
        return others[name]
    allowed = ("auto", *FLOATS, *GGML, *others)
    raise NotFound(f"cache type {dtype[:40]!r} is not known{nearest(dtype[:40], allowed)}; known are {', '.join(allowed)}")
