"""SGLang's defaults that follow from the GPU: the prefill chunk, the batches captured as graphs, mem_fraction_static.

Source: `_handle_gpu_memory_settings` and `adjust_mem_fraction_for_vlm`, SGLang server_args.py at 0.5.6, and before 0.5.3. What it does not
know: what data-parallel attention and prefill graphs reserve besides, and defaults of single models.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from ..catalog.gpus import Gpu
from ..errors import BadInput
from ..units import GiB, MiB, gib

CHUNK_RULE = (0, 5, 3)
"""The first release after the default came to follow from chunk and graphs (sglang#10975, 2025-09-27)."""
TIERS = ((20, 2048, 8, 8), (35, 2048, 24, 80), (60, 4096, 32, 160), (160, 8192, 256, 512), (inf, 16384, 512, 512))
"""By GiB that the driver reports, below: tokens of a prefill chunk, largest batch captured with less than 4 ranks, and with more."""
OLD_TIERS = ((35, 2048, 8, 80), (90, 8192, 160, 160), (160, 8192, 256, 256), (inf, 16384, 512, 512))
OLD_RESERVED = ((35, 2867.2, 102.4), (90, 9728, 512), (160, 12288, 512), (inf, 32768, 0))
"""Before 0.5.3, by GiB below: MiB reserved, and for each rank: (2.8 + ranks / 10), (9.5 + ranks / 2), (12 + ranks / 2), 32 GiB."""
UNKNOWN_GPU = (4096, 160, 0.88)
"""Chunk, largest batch captured and mem_fraction_static where the memory of the GPU is not known."""


def tier(gpu: Gpu | None, running: tuple[int, int, int]) -> tuple[int, int, int]:
    """Tokens of a prefill chunk, and the largest batch captured as a graph with few and with many ranks, by the GPU's memory."""
    if gpu is None:
        return UNKNOWN_GPU[0], UNKNOWN_GPU[1], UNKNOWN_GPU[1]
    tiers = TIERS if running >= CHUNK_RULE else OLD_TIERS
    return next((chunk, few, many) for below, chunk, few, many in tiers if gpu.capacity < below * GiB)


def fraction(gpu: Gpu | None, tower: object, running: tuple[int, int, int], chunk: int, captured: int, count: int, drafts: int) -> float:
    """The default of mem_fraction_static: what the reserve in MiB leaves of the memory that the driver reports.

    `tower` is the config of a vision tower, `count` the ranks of all groups, `drafts` the bytes left to a draft. Raises BadInput where
    nothing is left.
    """
    if gpu is None:
        return UNKNOWN_GPU[2]
    memory = gpu.capacity / MiB
    if running >= CHUNK_RULE:
        reserved = 512 + 1.5 * max(chunk, 2048) + 2 * captured + 128 * count
        reserved = max(reserved, 10240) if memory > 60 * 1024 else reserved
    else:
        base, each = next((base, each) for below, base, each in OLD_RESERVED if memory < below * 1024)
        reserved = base + each * count
    reserved += drafts / MiB
    share = round((memory - reserved) / memory, 3)
    if share <= 0:
        raise BadInput(f"gpu_memory {gib(gpu.capacity)}: SGLang reserves {reserved / 1024:.1f} GiB of it, which leaves nothing")
    return share * _vision_share(tower)


def _vision_share(tower: object) -> float:
    """What is left of the default with a vision tower: 0.95, and 0.1 less for every ViT-L/14 (24 layers, 1,024 wide) beyond the first."""
    if not isinstance(tower, Mapping):
        return 1.0
    layers, width = tower.get("num_hidden_layers", 24), tower.get("hidden_size", 1024)
    if not isinstance(layers, int) or not isinstance(width, int):
        return 0.95
    return 0.95 * max(0.8, min(1.05, 1.1 - 0.1 * layers * width**2 / (24 * 1024**2)))
