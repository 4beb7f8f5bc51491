"""Softmax attention of queries over keys and values."""

from __future__ import annotations

from ..tape import Dim, Tape, Tensor, numel
from .linear import lowered


def attention(
    t: Tape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    heads: int,
    kv_heads: int,
    window: int | None = None,
    past: bool = True,
    sdpa: bool = True,
    capped: bool = False,
    name: str = "attention",
) -> Tensor:
    """softmax(q kᵀ) v: q [b, s, heads·d], k [b, s, kv_heads·d], v [b, s, kv_heads·dv] -> [b, s, heads·dv].

    Keys are those of this pass and, with `past`, of the cache before it; `window` caps how many of them a token sees (FLOPs only: kernels
    hold no scores, `eager` computes them all). FLOPs: 2 · b · heads · s · keys · (d + dv), the causal half not taken off, as in torch
    `utils/flop_counter.py`. `flash` and `sdpa` (which takes flash or efficient attention for half precision) keep q, k, v, the output and
    the log-sum-exp [b, heads, s] in fp32 (Dao 2023, arXiv:2307.08691). `eager` (transformers' eager_attention_forward) repeats k and v to
    all heads, then makes scores, scaled and masked scores, their softmax in fp32 and its cast, each [b, heads, s, keys], and has a mask
    [b, 1, s, keys] that all layers share; soft-`capped` scores are divided, go through a tanh, which backward keeps, and are multiplied.
    A model that torch's `sdpa` cannot run (`_supports_sdpa = False`: caps, sinks) takes `eager` in its place. `inplace` (ggml without flash
    attention) has one fp32 tensor of scores, whose scale, mask and softmax are written over it, and a mask [s, keys].
    """
    q, k, v = (lowered(t, x, f"{name}.{side}") for x, side in ((q, "q"), (k, "k"), (v, "v")))
    b, s = q.shape[0], q.shape[1]
    own = k.shape[1]
    keys = Dim(own + t.past, "keys") if past and t.past else own
    d, dv = q.shape[2] // heads, v.shape[2] // kv_heads
    seen = min(keys, window) if window else keys
    flops = 2 * int(b) * int(heads) * int(s) * int(seen) * (int(d) + int(dv))
    out = (b, s, Dim(heads) * dv if not isinstance(heads, Dim) else heads * dv)
    square = (b, heads, s, keys)
    if t.kernels.attention == "inplace":
        mask = t.tensor(f"{name}.mask", (s, keys), itemsize=4)
        scores = t.op(f"{name}.scores", (q, k), square, itemsize=4, extra=(mask,))
        return t.op(name, (scores, mask, v), out, flops=flops)
    if t.kernels.attention == "flash" or (t.kernels.attention == "sdpa" and sdpa):
        lse = t.tensor(f"{name}.lse", (b, heads, s), itemsize=4)
        return t.op(name, (q, k, v), out, itemsize=q.itemsize, flops=flops, saves=(q, k, v, lse), saves_out=True, extra=(lse,))
    with t.module("", q, k, v):
        if kv_heads != heads:
            k = t.hold(t.op(f"{name}.repeat_k", (k,), (b, keys, heads, d)))
            v = t.hold(t.op(f"{name}.repeat_v", (v,), (b, keys, heads, dv)))
        scores = t.op(f"{name}.scores", (q, k), square, flops=2 * numel(square) * int(d), saves=(q, k))
        scaled = t.op(f"{name}.scaled", (scores,), square)
        if capped:
            small = t.op(f"{name}.divided", (scaled,), square)
            tanh = t.op(f"{name}.tanh", (small,), square, saves_out=True)
            scaled = t.op(f"{name}.capped", (tanh,), square)
        mask = t.shared(f"{name}.mask {window or ''}", (b, s, keys))
        masked = t.op(f"{name}.masked", (scaled, mask), square)
        with t.module("", masked):  # its name is bound to the cast softmax only then
            softmax = t.op(f"{name}.softmax", (masked,), square, itemsize=4, saves_out=True)
            cast = t.op(f"{name}.cast", (softmax,), square)
        if t.repeated is not None:
            t.frames[-3].append(cast)  # the module returns it too, and the layer names it `_` until its own end
        return t.op(name, (cast, v), out, flops=2 * numel(square) * int(dv), saves=(cast, v))
