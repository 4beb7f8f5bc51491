"""What CUDA kernels take from torch's allocator beside their results: (name, bytes) each, from the kernel's source.

The tape counts them while their op's backward pass runs; the trace, which sees no kernel's inside, notes the same.
"""

from __future__ import annotations

Lines = tuple[tuple[str, int], ...]


def flash_backward(*, batch: int, heads: int, kv_heads: int, tokens: int, keys: int, head_dim: int, itemsize: int) -> Lines:
    """softmax_d and dq_accum in fp32; under GQA dK and dV for every query head.

    Source: mha_bwd, aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, and _flash_attention_backward, attention_backward.cu
    (pytorch 2.13).
    """
    padded = -(-tokens // 128) * 128
    width = 32 if head_dim <= 128 else 64
    expanded = batch * keys * heads * head_dim * itemsize if kv_heads != heads else 0
    return (
        ("softmax_d", batch * heads * padded * 4),
        ("dq_accum", batch * padded * heads * -(-head_dim // width) * width * 4),
        ("dk_expanded", expanded),
        ("dv_expanded", expanded),
    )


def efficient_backward(*, batch: int, heads: int, tokens: int, keys: int, head_dim: int, itemsize: int) -> Lines:
    """`delta` and the kernel's workspace, with its blocks of I queries and J keys.

    Source: _efficient_attention_backward, attention_backward.cu; Params::workspace_size, mem_eff_attention/kernel_backward.h; the kernels
    of cutlassB.h for sm80: 64 x 64 up to a head_dim of 64, 128 x 64 up to 96 and above 128 (and for fp32 above 64), 128 x 128 between.
    """
    half = itemsize == 2
    i = 64 if head_dim <= 64 else 128
    j = 128 if half and 96 < head_dim <= 128 else 64
    elements = -(-tokens // i) * -(-head_dim // j) * (4 + i * j)
    if half and head_dim > 128:
        splits = max(min(-(-keys // j), 200 // (batch * heads)), 1)
        elements += 2 * splits * j * (-(-head_dim // i) * i)
    workspace = batch * heads * -(-elements // 4) * 4 * 4
    accumulated = batch * heads * tokens * head_dim * 4
    return ("delta", batch * heads * tokens * 4), ("workspace", workspace if half else max(workspace, accumulated))


def attention_backward(
    *, batch: int, heads: int, kv_heads: int, tokens: int, keys: int, head_dim: int, itemsize: int, masked: bool = False
) -> int:
    """Bytes in all for the kernel that `scaled_dot_product_attention` takes: flash for 16 bits, efficient for 32 or with a mask."""
    sizes = {"batch": batch, "heads": heads, "tokens": tokens, "keys": keys, "head_dim": head_dim, "itemsize": itemsize}
    lines = flash_backward(kv_heads=kv_heads, **sizes) if itemsize == 2 and not masked else efficient_backward(**sizes)
    return sum(nbytes for _, nbytes in lines)


def embedding_backward(tokens: int) -> Lines:
    """Sorted indices, their order and the sort's own copy, for more than 3,072 tokens; below that a kernel that takes nothing.

    Source: embedding_dense_backward_cuda, aten/src/ATen/native/cuda/Embedding.cu (pytorch 2.13).
    """
    return tuple((name, tokens * 8 if tokens > 3072 else 0) for name in ("sorted_indices", "orig_indices", "sort"))
