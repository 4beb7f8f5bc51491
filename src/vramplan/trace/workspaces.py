"""What CUDA kernels take from the allocator beside their results, which no dispatch mode sees; each from the kernel's source.

It does not know cuDNN's and cuBLASLt's own choices for a shape, nor Triton's and CUTLASS's grouped products: see docs/trace.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..allocator import round_up
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
    """softmax_d and dq_accum in fp32; under GQA dK and dV for every query head. query: [batch, heads, tokens, head_dim].

    Source: mha_bwd, aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, and _flash_attention_backward, attention_backward.cu.
    """
    grad, query, key, out = args[0], args[1], args[2], args[4]
    batch, heads, tokens, head_dim = query.shape
    padded = round_up(tokens, 128)
    yield "contiguous grad_out", _copy(grad.transpose(1, 2))
    yield "contiguous out", _copy(out.transpose(1, 2))
    yield "softmax_d", batch * heads * padded * 4
    yield "dq_accum", batch * padded * heads * round_up(head_dim, 32 if head_dim <= 128 else 64) * 4
    if key.shape[1] != heads:
        expanded = batch * key.shape[2] * heads * head_dim * query.element_size()
        yield "dk_expanded", expanded
        yield "dv_expanded", expanded


def efficient_backward(args: Args, kwargs: Kwargs, result: Any) -> Lines:
    """`delta` and the kernel's workspace, with its blocks of I queries and J keys. query: [batch, heads, tokens, head_dim].

    Source: _efficient_attention_backward, attention_backward.cu; Params::workspace_size, mem_eff_attention/kernel_backward.h; the kernels
    of cutlassB.h for sm80: 64 x 64 up to a head_dim of 64, 128 x 64 up to 96 and above 128 (and for fp32 above 64), 128 x 128 between.
    """
    grad, query, key = args[0], args[1], args[2]
    batch, heads, tokens, head_dim = query.shape
    half = query.element_size() == 2
    i = 64 if head_dim <= 64 else 128
    j = 128 if half and 96 < head_dim <= 128 else 64
    delta = batch * heads * tokens * 4
    yield "contiguous grad_out", _copy(grad.transpose(1, 2))
    yield "delta", delta
    elements = -(-tokens // i) * -(-head_dim // j) * (4 + i * j)
    if half and head_dim > 128:
        splits = max(min(-(-key.shape[2] // j), 200 // (batch * heads)), 1)
        elements += 2 * splits * j * round_up(head_dim, i)
    workspace = batch * heads * round_up(elements, 4) * 4
    yield "workspace", workspace if half else max(workspace, query.numel() * 4)


def cudnn_backward(args: Args, kwargs: Kwargs, result: Any) -> Lines:
    """cuDNN's own plan decides; assumed are the fp32 accumulator of dQ and the row sums, as in flash attention's backward."""
    batch, heads, tokens, head_dim = args[1].shape
    yield "assumed: row sums", batch * heads * round_up(tokens, 128) * 4
    yield "assumed: dq in fp32", batch * heads * tokens * head_dim * 4


def embedding_backward(args: Args, kwargs: Kwargs, result: Any) -> Lines:
    """Sorted indices, their order and the sort's own copy, for more than 3,072 tokens.

    Source: embedding_dense_backward_cuda, aten/src/ATen/native/cuda/Embedding.cu: below that a kernel that takes nothing.
    """
    tokens = args[1].numel()
    if tokens > 3072:
        for name in ("sorted_indices", "orig_indices", "sort"):
            yield name, tokens * 8


TABLE: dict[Any, Workspace] = {
    aten._scaled_dot_product_flash_attention_backward.default: flash_backward,
    aten._scaled_dot_product_efficient_attention_backward.default: efficient_backward,
    aten._scaled_dot_product_cudnn_attention_backward.default: cudnn_backward,
    aten.embedding_dense_backward.default: embedding_backward,
}
PRODUCTS = {aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default}
"""The operators that run on cuBLAS."""
