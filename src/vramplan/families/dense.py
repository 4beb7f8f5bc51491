"""What plain decoders share beyond blocks.py: their sizes, read and checked once, and the parts of an attention around its projections.

It knows no family: which projections, norms and windows there are, and in which order, a family's forward says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..dim import Dim
from ..ops import activation, dropout, gated, linear, multiply
from ..ops.pointwise import act_and_multiply
from ..tape import Tape
from ..tensors import Tensor
from .blocks import grouped_attention
from .checks import multiple
from .config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes that every plain decoder has. Queries are `heads · head_dim` wide, keys and values `kv_heads · head_dim`."""

    layers: int
    hidden: Dim
    heads: Dim
    kv_heads: Dim
    head_dim: Dim
    ffn: Dim
    vocab: Dim


def sizes(
    c: Config,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    grouped: bool = True,
    split: bool = False,
    ffn: tuple[str, int] | None = None,
) -> Sizes:
    """Read and check the sizes of a decoder. `kv_heads` and `head_dim` are the family's defaults, else heads and hidden / heads.

    Not `grouped`: there are as many kv heads as heads, whatever the config says. `split`: the heads split hidden, likewise. `ffn`: its
    key, where it is not `intermediate_size`, and the multiple of hidden that it is by default. Raises BadInput where the heads do not
    divide hidden, or the kv heads not the heads.
    """
    hidden, heads = c.size("hidden_size", label="hidden"), c.size("num_attention_heads", label="heads")
    kv = c.size("num_key_value_heads", kv_heads or int(heads), label="kv_heads") if grouped else Dim(int(heads), "kv_heads")
    multiple(c, heads, kv)
    stated = not split and (head_dim is not None or c.has("head_dim"))
    dim = c.size("head_dim", head_dim) if stated else Dim(int(multiple(c, hidden, heads)), "head_dim")
    key, default = (ffn[0], ffn[1] * int(hidden)) if ffn else ("intermediate_size", None)
    width = c.size(key, default, label="ffn")
    return Sizes(
        layers=c.layers(), hidden=hidden, heads=heads, kv_heads=kv, head_dim=dim, ffn=width, vocab=c.size("vocab_size", label="vocab")
    )


def renamed(c: Config, **names: str) -> Config:
    """The config with a family's own keys (left) under their common names (right), as transformers' `attribute_map` has them."""
    return Config({**c.raw, **{common: c.raw[own] for own, common in names.items() if c.has(own)}}, c.path)


def windows(c: Config, window: int | None, default: Sequence[str]) -> list[int | None]:
    """The sliding window of each layer, None where it attends to everything: by the config's `layer_types`, else by `default`."""
    kinds = c.kinds("layer_types", len(default), default, ("sliding_attention", "full_attention"))
    return [window if kind == "sliding_attention" else None for kind in kinds]


def every(n: int, period: int) -> list[str]:
    """Kinds of `n` layers of which each `period`-th attends to everything and the others slide.

    >>> every(5, 2)
    ['sliding_attention', 'full_attention', 'sliding_attention', 'full_attention', 'sliding_attention']
    """
    return ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(n)]


def project(t: Tape, x: Tensor, s: Sizes, *, bias: bool = False, stored: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """q [b, s, heads·head_dim], k and v [b, s, kv_heads·head_dim] of x [b, s, hidden], by a matrix each.

    Where the checkpoint has one `stored` for all three, or a framework joins them (kernels), they are parts of one tensor.
    """
    if t.kernels.qkv == "joined" or (stored and t.kernels.qkv == "stored"):
        parts = (s.heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.head_dim)
        return split(t, linear(t, x, stored or "qkv_proj", qkv_width(s), bias=bias, parts=parts), s)
    q = linear(t, x, "q_proj", s.heads * s.head_dim, bias=bias)
    k = linear(t, x, "k_proj", s.kv_heads * s.head_dim, bias=bias)
    return q, k, linear(t, x, "v_proj", s.kv_heads * s.head_dim, bias=bias)


def qkv_width(s: Sizes) -> Dim:
    """Width of one projection that makes q, k and v: (heads + 2·kv_heads)·head_dim."""
    return (s.heads + 2 * s.kv_heads) * s.head_dim


def split(t: Tape, qkv: Tensor, s: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as views of one fused projection of `qkv_width`."""
    b, n, _ = qkv.shape
    q, kv = (b, n, s.heads * s.head_dim), (b, n, s.kv_heads * s.head_dim)
    return t.view(qkv, q), t.view(qkv, kv), t.view(qkv, kv)


def attend(
    t: Tape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    s: Sizes,
    *,
    window: int | None = None,
    rotary: bool | Literal["joined"] = True,
    cached: bool = True,
    capped: bool = False,
    mask: Tensor | None = None,
    upcast: bool = True,
    broadcast: bool = False,
) -> Tensor:
    """Rotate q and k, append k and v to the cache, attend: -> [b, s, heads·head_dim]. Soft-`capped` scores are none of sdpa's."""
    return grouped_attention(
        t,
        q,
        k,
        v,
        heads=s.heads,
        kv_heads=s.kv_heads,
        head_dim=s.head_dim,
        window=window,
        rotary=rotary,
        cached=cached,
        sdpa=not capped,
        capped=capped,
        mask=mask,
        upcast=upcast,
        broadcast=broadcast,
    )


def fused_mlp(
    t: Tape,
    x: Tensor,
    ffn: Dim,
    *,
    bias: bool = False,
    names: tuple[str, str] = ("gate_up_proj", "down_proj"),
    module: str = "mlp",
    dropped: float = 0.0,
) -> Tensor:
    """A gated MLP whose gate and up are one matrix [2·ffn, hidden]: [b, s, hidden] -> [b, s, hidden]. The product may be `dropped`.

    `eager` (transformers' Phi3MLP) makes the activated gate and the product; `merged` only the product (vLLM's SiluAndMul); `fused` copies
    each half first (Liger's LigerPhi3SwiGLUMLP, whose kernel takes contiguous ones).
    """
    with t.module(module, x, part="mlp"):
        if t.kernels.gate_up == "split":
            y = gated(t, x, "gate_proj", "up_proj", ffn, bias=bias)
            return linear(t, dropout(t, y, dropped), names[1], x.shape[-1], bias=bias)
        both = linear(t, x, names[0], 2 * ffn, bias=bias)
        half = t.view(both, (*x.shape[:-1], ffn))
        if t.kernels.mlp == "fused":
            y = act_and_multiply(t, *(t.op(f"{side}.contiguous", (both,), half.shape) for side in ("gate", "up")))
        elif t.kernels.mlp != "merged":
            y = multiply(t, activation(t, half), half, "gated")
        else:
            y = t.op("act_and_mul", (both,), half.shape, saves=(both,))
        return linear(t, dropout(t, y, dropped), names[1], x.shape[-1], bias=bias)
