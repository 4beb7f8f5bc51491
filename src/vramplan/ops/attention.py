"""Softmax attention of queries over keys and values."""

from __future__ import annotations

from typing import NamedTuple

from ..dim import Dim, numel
from ..tape import Tape
from ..tensors import Tensor
from .attention_math import math_attention
from .linear import lowered
from .pointwise import dropout
from .workspaces import attention_backward


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
    masked: bool = True,
    mask: Tensor | None = None,
    upcast: bool = True,
    sinks: bool = False,
    broadcast: bool = False,
    by_head: bool = False,
    name: str = "attention",
) -> Tensor:
    """softmax(q kᵀ) v: q [b, s, heads·d], k [b, s, kv_heads·d], v [b, s, kv_heads·dv] -> [b, s, heads·dv].

    Keys are those of this pass and, with `past`, of the cache before it; `window` caps how many of them a token sees (FLOPs only: kernels
    hold no scores, `eager` computes them all). FLOPs: 2 · b · heads · s · keys · (d + dv), the causal half not taken off, as in torch
    `utils/flop_counter.py`. `flash` and `sdpa` (which takes flash or efficient attention for half precision) keep q, k, v, the output and
    the log-sum-exp [b, heads, s] in fp32 (Dao 2023, arXiv:2307.08691); what they drop in training follows from the seed that they keep.
    Queries that lie head by head in memory (`by_head`: a torch.cat of rotated and unrotated parts) give an output that does too, which is
    copied. `eager` is told at `_probabilities`. A model that torch's `sdpa` cannot run (`_supports_sdpa = False`: caps, sinks) takes
    `eager` in its place. `inplace` (ggml without flash attention) has one fp32 tensor of scores, whose scale, mask and softmax are written
    over it, and a mask [s, keys]. Keys that are `broadcast` to all heads of the queries are told at `math_attention`.

    A window narrower than the keys is a mask of truth values [b, s, keys] to sdpa, as a `mask` that is given is: with one it takes the
    efficient kernel, which gets keys and values repeated to all heads (transformers 5.23 `integrations/sdpa_attention.py`,
    use_gqa_in_sdpa; `masking_utils.py`, _ignore_causal_mask_sdpa). `flash` takes none. In fp32 sdpa takes that kernel too, and repeats them
    itself.
    """
    wide, given = q.itemsize, k
    q, k, v = (lowered(t, x, f"{name}.{side}") for x, side in ((q, "q"), (k, "k"), (v, "v")))
    if t.kernels.layout == "dense":
        q, k, v = (x if x.base is None else _copied(t, x, f"{name}.{side}") for x, side in ((q, "q"), (k, "k"), (v, "v")))
    keys = _keys(t, k.shape[1], window) if past and t.past else k.shape[1]
    of = Sizes(q.shape[0], q.shape[1], keys, heads, kv_heads, q.shape[2] // heads, v.shape[2] // kv_heads)
    flops = of.flops(min(keys, window) if window else keys)
    kernel = t.kernels.attention
    if kernel == "inplace":
        where = t.tensor(f"{name}.mask", (of.tokens, keys), itemsize=4)
        scores = t.op(f"{name}.scores", (q, k), of.square, itemsize=4, extra=(where,))
        return t.op(name, (scores, where, v), of.out, flops=flops)
    if broadcast and of.grouped and kernel == "sdpa" and t.kernels.frames == "held" and t.kernels.kv != "expanded":
        return math_attention(t, q, k, v, heads=heads, kv_heads=kv_heads, keys=Dim(keys), name=name)
    if kernel == "flash" or (kernel == "sdpa" and sdpa):
        if kernel == "flash":
            mask = None
        elif mask is None and masked and _needs_mask(t, of.tokens, keys, window):
            mask = t.shared(f"{name}.mask {window}", (Dim(1), of.tokens, keys), itemsize=1)
        by_head = t.kernels.rope == "concatenated" or (by_head and t.kernels.rope != "stacked")
        return _fused(t, q, k, v, of, mask, flops=flops, view=k is given, by_head=by_head, name=name)
    hidden = f"{name}.mask {window or ''}" if masked else f"{name}.padding" if t.kernels.padding_mask == "always" else None
    return _eager(t, q, k, v, of, mask, hidden, wide if upcast and not sinks else 0, capped, sinks, name)


class Sizes(NamedTuple):
    """Of one attention: `heads` of queries over `kv_heads` of keys and values."""

    batch: int
    tokens: int
    keys: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int

    @property
    def grouped(self) -> bool:
        """Whether several heads of queries share keys and values."""
        return self.kv_heads != self.heads

    @property
    def square(self) -> tuple[int, ...]:
        """The scores: [b, heads, s, keys]."""
        return self.batch, self.heads, self.tokens, self.keys

    @property
    def out(self) -> tuple[int, ...]:
        """What comes of it: [b, s, heads·dv]."""
        heads = self.heads if isinstance(self.heads, Dim) else Dim(self.heads)
        return self.batch, self.tokens, heads * self.value_dim

    def flops(self, seen: int) -> int:
        """Of both products, where a token sees so many keys."""
        return 2 * int(self.batch) * int(self.heads) * int(self.tokens) * int(seen) * (int(self.head_dim) + int(self.value_dim))


def _fused(
    t: Tape, q: Tensor, k: Tensor, v: Tensor, of: Sizes, mask: Tensor | None, *, flops: int, view: bool, by_head: bool, name: str
) -> Tensor:
    """One kernel, which keeps the log-sum-exp: flash, or sdpa's; keys are a `view` where autocast made no copy of them."""
    sdpa = t.kernels.attention == "sdpa"
    copied = t.kernels.kv == "expanded" or (of.kv_heads != 1 if mask or t.kernels.kv == "repeated" else q.itemsize == 4)
    if of.grouped and copied and sdpa:
        k, v = _all_heads(t, k, v, of, name)
    elif of.grouped and mask and not view:
        k = _repeated(t, k, (of.batch, of.keys, of.heads, of.head_dim), f"{name}.k")  # autocast's copy of a view that stands for all heads
    lse = t.tensor(f"{name}.lse", (of.batch, of.heads, of.tokens), itemsize=4)
    sizes = {"batch": of.batch, "heads": of.heads, "tokens": of.tokens, "keys": of.keys, "head_dim": of.head_dim, "itemsize": q.itemsize}
    kv_heads = int(k.shape[2]) // int(of.head_dim) if len(k.shape) == 3 else int(of.heads)
    taken = attention_backward(**sizes, kv_heads=kv_heads, masked=mask is not None)
    added = (_added(t, mask, of.batch, q.itemsize, name),) if mask else ()
    kept = (q, k, v, lse, *added)
    y = t.op(name, (q, k, v), of.out, itemsize=q.itemsize, flops=flops, saves=kept, saves_out=True, extra=(lse,), backward_workspace=taken)
    by_head = by_head or (t.kernels.layout == "by head" and sdpa)
    return t.op(f"{name}.by_token", (y,), of.out, itemsize=y.itemsize) if by_head and t.kernels.frames == "held" else y


def _keys(t: Tape, own: int, window: int | None) -> Dim:
    """Keys of this pass and those before. A cache that grows has a window's worth of them; one that is as long as it will be, too, but for
    a prompt that is longer (transformers 5.23 `cache_utils.py`, DynamicSlidingWindowLayer and StaticSlidingWindowLayer).
    """
    keys = own + t.past
    if window and t.kernels.cache != "kept":
        keys = min(keys, max(int(own), int(window)))
    return Dim(keys, "keys")


def _needs_mask(t: Tape, s: int, keys: int, window: int | None) -> bool:
    """Whether sdpa is given a mask that takes room: where a window hides keys, and where several tokens follow others; one's is a row.

    Source: transformers 5.23 `masking_utils.py`, _ignore_causal_mask_sdpa.
    """
    if t.kernels.cache == "grown" and t.past:
        return s > 1
    return window is not None and keys >= window and not (t.kernels.cache == "static" and s == 1)


def _dense(t: Tape, x: Tensor, name: str) -> Tensor:
    """`x`, or a copy where it is a part of a wider projection: torch.matmul takes batches of several that are dense in memory."""
    return x if x.base is None or x.shape[0] == 1 else _copied(t, x, name)


def _copied(t: Tape, x: Tensor, name: str) -> Tensor:
    return t.op(f"{name}.dense", (x,), x.shape, itemsize=x.itemsize)


def _added(t: Tape, mask: Tensor, batch: int, itemsize: int, name: str) -> Tensor:
    """What sdpa's efficient kernel adds to the scores of a `batch`, and keeps: `mask` itself; where it is one of truth values a number for
    each; where its rows are no multiple of 16 a copy that has such (pytorch `aten/native/transformers/attention.cpp`: pad_bias,
    convert_boolean_attn_mask).
    """
    s, keys = mask.shape[-2:]
    if mask.itemsize == 1:
        mask = t.op(f"{name}.bias", (mask,), (batch, s, keys), itemsize=itemsize)
    wide = -(-int(keys) // 16) * 16
    return mask if wide == keys else t.op(f"{name}.padded_bias", (mask,), (mask.shape[0], s, wide), itemsize=itemsize)


def _eager(
    t: Tape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    of: Sizes,
    mask: Tensor | None,
    hidden: str | None,
    wide: int,
    capped: bool,
    sinks: bool,
    name: str,
) -> Tensor:
    """transformers' eager_attention_forward; where no mask is given, that called `hidden`, of tokens or padding, which all layers share."""
    with t.module("", q, k, v):
        q, k, v = (_dense(t, x, f"{name}.{side}") for x, side in ((q, "q"), (k, "k"), (v, "v")))
        if of.grouped:
            k, v = _all_heads(t, k, v, of, name)
        if mask is None and hidden:
            rows = Dim(1) if hidden.endswith(".padding") else of.tokens
            mask = t.shared(hidden, (of.batch, rows, of.keys))
        probabilities = _probabilities(t, q, k, of.square, mask, wide, capped, sinks, name)
        if t.repeated is not None:
            t.frames[-3].append(probabilities)  # the module returns it too, and the layer names it `_` until its own end
        entry = lowered(t, probabilities, f"{name}.probabilities")
        return t.op(name, (entry, v), of.out, itemsize=v.itemsize, flops=2 * numel(of.square) * int(of.value_dim), saves=(entry, v))


def _all_heads(t: Tape, k: Tensor, v: Tensor, of: Sizes, name: str) -> tuple[Tensor, Tensor]:
    """Keys and values of all heads."""
    shape = of.batch, of.keys, of.heads
    return _repeated(t, k, (*shape, of.head_dim), f"{name}.k"), _repeated(t, v, (*shape, of.value_dim), f"{name}.v")


def _repeated(t: Tape, x: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Keys or values of all heads, a copy (`repeat_kv`), which a local variable names."""
    return t.hold(t.op(f"{name}.repeated", (x,), shape, itemsize=x.itemsize))


def _probabilities(
    t: Tape, q: Tensor, k: Tensor, square: tuple[int, ...], mask: Tensor | None, wide: int, capped: bool, sinks: bool, name: str
) -> Tensor:
    """transformers' eager_attention_forward: scores, scaled, soft-`capped` and masked scores, their softmax, its cast, each `square`.

    Soft-capped scores are divided, go through a tanh, which backward keeps, and are multiplied. All layers share the mask. The softmax is
    in fp32 where it is cast to `wide` bytes afterwards (0: it stays in the scores' own dtype, as BERT's), and always under autocast; bf16
    scores are copied to fp32 first (pytorch `aten/native/SoftMax.cpp`). What is dropped in training is another tensor, with its mask. A
    learned logit of each head, its `sinks`, is joined to the masked scores, whose largest is then taken off, and the softmax is in their
    own dtype (5.23 `models/gpt_oss/modeling_gpt_oss.py`, eager_attention_forward).
    """
    size = q.itemsize
    scores = t.op(f"{name}.scores", (q, k), square, itemsize=size, flops=2 * numel(square) * int(q.shape[2] // square[1]), saves=(q, k))
    scores = t.op(f"{name}.scaled", (scores,), square, itemsize=size)
    if capped:
        small = t.op(f"{name}.divided", (scores,), square, itemsize=size)
        tanh = t.op(f"{name}.tanh", (small,), square, itemsize=size, saves_out=True)
        scores = t.op(f"{name}.capped", (tanh,), square, itemsize=size)
    if mask:
        scores = t.op(f"{name}.masked", (scores, mask), square, itemsize=max(size, mask.itemsize))
    with t.module("", scores):  # its name is bound to the cast softmax only then
        if sinks:
            wider = (*square[:-1], Dim(square[-1] + 1, "keys"))
            joined = t.op(f"{name}.joined", (scores,), wider, itemsize=scores.itemsize)
            scores, square = t.op(f"{name}.shifted", (joined,), wider, itemsize=scores.itemsize), wider
        fp32 = wide or t.autocast
        if fp32 and scores.itemsize != 4 and t.kernels.softmax == "copied":
            scores = t.op(f"{name}.float", (scores,), square, itemsize=4)
        kept = (scores,) if t.kernels.softmax_keeps == "both" else ()
        softmax = t.op(f"{name}.softmax", (scores,), square, itemsize=4 if fp32 else scores.itemsize, saves=kept, saves_out=True)
        if wide and wide != softmax.itemsize:
            softmax = t.op(f"{name}.cast", (softmax,), square, itemsize=wide)
    return dropout(t, softmax, t.attention_dropout, f"{name}.dropout")
