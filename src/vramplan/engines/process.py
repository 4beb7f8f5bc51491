"""What a process with torch takes of a GPU beside its tensors: the CUDA context, and cuBLAS's workspace."""

from __future__ import annotations

from ..catalog.gpus import Gpu
from ..ledger import Item, Moment
from ..units import MiB

CUDA_CONTEXT = 300 * MiB
"""With lazy module loading, the default since CUDA 12.2 on Linux: pytorch issue #107667 and NVIDIA forum threads 261135 and 290090."""
CUBLAS_WORKSPACE = 8_519_680
"""Taken from torch's allocator by the first matrix product, before Hopper: pytorch issue #95668 (8,519,680 B)."""
CUBLAS_WORKSPACE_HOPPER = 32 * MiB
"""On compute capability 9.0: pytorch issue #182669."""


def cublas(gpu: Gpu | None, alive: frozenset[Moment]) -> Item:
    """The workspace of cuBLAS: one handle and stream, taken from torch's allocator by the first matrix product."""
    hopper = gpu is not None and gpu.compute_capability == "9.0"
    nbytes, source = (CUBLAS_WORKSPACE_HOPPER, "pytorch #182669") if hopper else (CUBLAS_WORKSPACE, "pytorch #95668")
    return Item(
        path=("workspace", "cuBLAS"), nbytes=nbytes, alive=alive, why="one handle and stream, from torch's allocator", source=source
    )
