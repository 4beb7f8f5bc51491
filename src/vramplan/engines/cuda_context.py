"""CUDA's context of a process that runs an engine of its own kernels, with the buffers of NCCL where there are several ranks."""

from __future__ import annotations

from ..catalog.gpus import Gpu
from ..ledger import Item, Moment
from ..units import GiB

DATACENTER, CONSUMER = 548 * GiB // 1024, 3 * GiB // 10
"""0.51 GiB in vLLM 0.19.0's starting snapshots on H100; 0.26 GiB of an RTX 5080 in a log of SGLang, with fewer multiprocessors."""
SEVERAL = 3 * GiB // 2
"""With several ranks: about 1.5 GiB in the same logs of vLLM."""


def context_item(gpu: Gpu | None, alive: frozenset[Moment], ranks: int = 1) -> Item:
    """The context of one rank."""
    nbytes = SEVERAL if ranks > 1 else CONSUMER if gpu is not None and gpu.kind == "consumer" else DATACENTER
    why = "one process" if ranks == 1 else "one process, with NCCL"
    return Item(path=("cuda context",), nbytes=nbytes, alive=alive, why=why, source="logs of vLLM 0.19.0 (H100) and SGLang (RTX 5080)")
