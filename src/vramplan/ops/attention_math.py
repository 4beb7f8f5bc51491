"""Softmax attention by torch's math kernel, which sdpa takes where no fused one does: everything in fp32, all scores at once."""

from __future__ import annotations

from ..dim import Dim, numel
from ..tape import Tape
from ..tensors import Tensor

SAFE_SOFTMAX = 5
"""Bytes for each score while `_safe_softmax` runs, beside its input and its result: the softmax in fp32, and which scores are −∞."""


def math_attention(t: Tape, q: Tensor, k: Tensor, v: Tensor, *, heads: int, kv_heads: int, keys: Dim, name: str) -> Tensor:
    """softmax(q kᵀ) v: q [b, s, heads·d], k and v [b, keys, kv_heads·d] of the cache and this pass -> like q.

    Fused kernels ask for as many heads of keys as of queries, unless `enable_gqa` says otherwise (`check_batch_size_and_num_heads_dense`,
    pytorch `aten/native/transformers/sdp_utils_cpp.h`): a model that has them broadcast gets this one. q, k and v in fp32, q and k scaled,
    keys and values copied to all heads by their product; 16-bit inputs only. Source: pytorch `aten/native/transformers/attention.cpp`,
    _scaled_dot_product_attention_math and _safe_softmax.
    """
    b, s, width = q.shape
    d = width // heads
    square, past = (b, heads, s, keys), (b, keys, kv_heads, d)
    with t.module("", q, k, v):
        wide, wide_k, wide_v = (
            t.hold(t.op(f"{name}.{side}.float", (x,), shape, itemsize=4))
            for side, x, shape in (("q", q, q.shape), ("k", k, past), ("v", v, past))
        )
        scaled, scaled_k = (t.hold(t.op(f"{x.name}.scaled", (x,), x.shape, itemsize=4)) for x in (wide, wide_k))
        copied = t.op(f"{name}.k.copied", (scaled_k,), (b, keys, heads, d), itemsize=4)
        flops = 2 * numel(square) * int(d)
        scores = t.op(f"{name}.scores", (scaled, copied), square, itemsize=4, flops=flops, saves=(scaled, copied))
        workspace = numel(square) * SAFE_SOFTMAX
        softmax = t.op(f"{name}.softmax", (scores,), square, itemsize=4, saves_out=True, workspace=workspace)
        copied = t.op(f"{name}.v.copied", (wide_v,), (b, keys, heads, d), itemsize=4)
        y = t.op(f"{name}.wide", (softmax, copied), q.shape, itemsize=4, flops=flops, saves=(softmax, copied))
        y = t.op(name, (y,), q.shape, itemsize=q.itemsize)
    return t.op(f"{name}.by_token", (y,), q.shape, itemsize=q.itemsize)
