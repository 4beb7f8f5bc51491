"""What a GPU can do in a second, and the class of GPUs that it belongs to where efficiencies are alike.

Rates and bandwidths are the catalogue's. Not known here: links between machines, clocks under a power limit, a host's memory.
"""

from __future__ import annotations

import re

from ..catalog.gpus import Gpu
from ..errors import Unknown

HALF_ACCUMULATING = ("llama.cpp", "exllamav2", "exllamav3")
"""Engines whose products of 16-bit matrices accumulate in fp16, at twice the rate on GeForce cards (`ggml/src/ggml-cuda/ggml-cuda.cu`,
ggml_cuda_op_mul_mat_cublas: CUBLAS_COMPUTE_16F; exllamav2 `exllamav2_ext/cuda/q_gemm.cu`: half2)."""

LANE = {"3.0": 0.985e9, "4.0": 1.969e9, "5.0": 3.938e9, "6.0": 7.563e9}
"""Bytes/s of one PCIe lane and direction by generation: 8, 16, 32 and 64 GT/s less the line code (PCI-SIG, PCI Express specifications)."""


def gpu_class(gpu: Gpu) -> str:
    """The GPUs that reach alike shares of their bandwidth: by vendor and by kind of memory.

    >>> from ..catalog.gpus import find_gpu
    >>> [gpu_class(find_gpu(name)) for name in ("rtx-4090", "h100-sxm-80gb", "l40s", "apple-m3-max-40-core")]
    ['GeForce', 'NVIDIA HBM', 'NVIDIA GDDR', 'Apple']
    """
    hbm = gpu.memory_type.startswith("HBM")
    if gpu.vendor == "nvidia":
        return "NVIDIA unified" if gpu.unified else "NVIDIA HBM" if hbm else "GeForce" if gpu.kind == "consumer" else "NVIDIA GDDR"
    if gpu.vendor == "amd":
        return "AMD unified" if gpu.unified else "Instinct" if hbm else "Radeon"
    if gpu.vendor == "intel":
        return "Intel unified" if gpu.unified else "Intel HBM" if hbm else "Arc"
    return gpu.vendor.capitalize()


def peak(gpu: Gpu, form: str, engine: str = "") -> float:
    """Operations a second with matrices of the number format `form` (fp32, fp16, bf16, fp8, int8, fp4), dense.

    A format that the GPU has no units for is computed in the next wider one that it has. Raises Unknown where its rates are not known.
    """
    wider = {"fp4": "fp8", "int8": "fp16", "fp8": "bf16", "bf16": "fp16", "fp16": "fp32"}
    name = "fp16_acc16" if form in ("bf16", "fp16") and engine in HALF_ACCUMULATING and "fp16_acc16" in gpu.rates else form
    while name not in gpu.rates:
        if name not in wider:
            raise Unknown(f"{gpu.name}: the catalogue has no rate of operations for it, so its speed is not known")
        name = wider[name]
    return gpu.rates[name]


def bandwidth(gpu: Gpu) -> int:
    """Bytes a second of its memory. Raises Unknown where the catalogue has none."""
    if not gpu.bandwidth:
        raise Unknown(f"{gpu.name}: its memory's bandwidth is not known, so neither is its speed")
    return gpu.bandwidth


def pcie(gpu: Gpu) -> float:
    """Bytes a second to or from the host. Raises Unknown where its PCIe generation or width is not known."""
    found = re.search(r"(\d\.0) x(\d+)", gpu.pcie or "")
    if not found or found[1] not in LANE:
        raise Unknown(f"{gpu.name}: its link to the host is not known")
    return LANE[found[1]] * int(found[2])


def link(gpu: Gpu) -> float:
    """Bytes a second to another GPU of the machine in one direction: NVLink (both directions together in the catalogue), else PCIe."""
    return gpu.nvlink / 2 if gpu.nvlink else pcie(gpu)
