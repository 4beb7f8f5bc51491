"""What CUDA kernels take from the allocator beside their results, which no dispatch mode sees; each from the kernel's source.

It does not know cuDNN's and cuBLASLt's own choices for a shape, nor Triton's and CUTLASS's grouped products: see docs/trace.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..allocator import round_up
from ..ops import workspaces
from ..ops.attention_math import SAFE_SOFTMAX
from ..optimizers.clipping import partial_norms
from .recorder import Workspace

aten = torch.ops.aten
Lines = Iterable[tuple[str, int]]
Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]


def cublas(capability: tuple[int, int]) -> int:
    """Bytes of cuBLAS's workspace, one for each handle, which is one for each thread: 32 MiB from Hopper on, 8,519,680 B before.

    Source: parseChosenWorkspaceSize, aten/src/ATen/cuda/CublasHandlePool.cpp (":4096:2:16:8 default, 32MiB for Hopper and Blackwell").
    """
    return 32 << 20 if capability[0] in (9, 10) else (2 * 4096 + 8 * 16) << 10


def _copy(tensor: Any) -> int:
    return 0 if tensor.is_contiguous() else tensor.numel() * tensor.element_size()


def flash_backward(args: Args, kwargs: Kwargs, result: Any) -> Lines:
    """Copies of what is not laid out as the kernel asks (flash_api.cpp, attention_backward.cu), and its workspaces."""
    grad, query, key, out = args[0], args[1], args[2], args[4]
    yield "contiguous grad_out", _copy(grad.transpose(1, 2))
    yield "contiguous out", _copy(out.transpose(1, 2))
    yield from workspaces.flash_backward(kv_heads=key.shape[1], **_sizes(query, key))


def efficient_backward(args: Args, kwargs: Kwargs, result: Any) -> Lines:
    """A copy of the gradient where it is not laid out as the kernel asks (attention_backward.cu), and its workspaces."""
    grad, query, key = args[0], args[1], args[2]
    yield "contiguous grad_out", _copy(grad.transpose(1, 2))
    yield from workspaces.efficient_backward(**_sizes(query, key))


def _sizes(query: Any, key: Any) -> dict[str, int]:
    """query: [batch, heads, tokens, head_dim], key: [batch, kv_heads, keys, head_dim]."""
    batch, heads, tokens, head_dim = query.shape
    return {
        "batch": batch,
        "heads": heads,
        "tokens": tokens,
        "keys": key.shape[2],
        "head_dim": head_dim,
        "itemsize": query.element_size(),
    }


def cudnn_backward(args: Args, kwargs: Kwargs, result: Any) -> Lines:
    """cuDNN's own plan decides; assumed are the fp32 accumulator of dQ and the row sums, as in flash attention's backward."""
    batch, heads, tokens, head_dim = args[1].shape
    yield "assumed: row sums", batch * heads * round_up(tokens, 128) * 4
    yield "assumed: dq in fp32", batch * heads * tokens * head_dim * 4


def embedding_backward(args: Args, kwargs: Kwargs, result: Any) -> Lines:
    return workspaces.embedding_backward(args[1].numel())


def norms(args: Args, kwargs: Kwargs, result: Any) -> Lines:
    """Sums by chunk, before they are summed to a norm for each tensor."""
    return (("sums by chunk", partial_norms(len(args[0]), max(tensor.numel() for tensor in args[0]))),)


def decomposition(args: Args, kwargs: Kwargs, result: Any) -> Lines:
    """A column-major copy (svd_cusolver, BatchLinearAlgebraLib.cpp). It does not know cuSOLVER's own workspace."""
    return (("column-major copy", args[0].numel() * args[0].element_size()),)


def safe_softmax(args: Args, kwargs: Kwargs, result: Any) -> Lines:
    """The softmax itself, and which of its inputs are −∞ (aten/native/transformers/attention.cpp)."""
    return (("softmax and mask", result.numel() * SAFE_SOFTMAX),)


TABLE: dict[Any, Workspace] = {
    aten._safe_softmax.default: safe_softmax,
    aten._scaled_dot_product_flash_attention_backward.default: flash_backward,
    aten._scaled_dot_product_efficient_attention_backward.default: efficient_backward,
    aten._scaled_dot_product_cudnn_attention_backward.default: cudnn_backward,
    aten.embedding_dense_backward.default: embedding_backward,
    aten._foreach_norm.Scalar: norms,
    aten._linalg_svd.default: decomposition,
}
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}
"""The operators that run on cuBLAS."""
