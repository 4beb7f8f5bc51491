"""What many families share: grouped-query attention, gated and plain MLPs, mixtures of experts. A family's file says how it uses them."""

from __future__ import annotations

from typing import Literal

from ..dim import Dim
from ..ops import add, attention, experts, gated, linear, multiply, rms_norm, rope, route
from ..ops.activations import activate
from ..ops.fused_lora import lora_mlp
from ..tape import Tape
from ..tensors import Tensor
from .checks import multiple
from .config import Config


def head_dim(c: Config, heads: Dim, hidden: Dim) -> Dim:
    """`head_dim` where the config states it, else hidden / heads. Raises BadInput where the heads do not divide hidden."""
    return c.size("head_dim") if c.has("head_dim") else Dim(int(multiple(c, hidden, heads)), "head_dim")


def self_attention(
    t: Tape,
    x: Tensor,
    *,
    heads: Dim,
    kv_heads: Dim,
    head_dim: Dim,
    bias: bool = False,
    out_bias: bool = False,
    qk_norm: bool = False,
    window: int | None = None,
    rotary: bool = True,
    cached: bool = True,
    masked: bool = True,
    mask: Tensor | None = None,
    names: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj"),
    module: str = "self_attn",
) -> Tensor:
    """Grouped-query attention: [b, s, hidden] -> [b, s, hidden]; caches k and v, [kv_heads, head_dim] per token.

    `qk_norm`: RMSNorm over head_dim on q and k (Qwen3, Gemma 3). `bias` is that of q, k and v.
    """
    with t.module(module, x, part="attention"):
        q = linear(t, x, names[0], heads * head_dim, bias=bias)
        k = linear(t, x, names[1], kv_heads * head_dim, bias=bias)
        v = linear(t, x, names[2], kv_heads * head_dim, bias=bias)
        if qk_norm:
            q, k = rms_norm(t, q, "q_norm", width=head_dim), rms_norm(t, k, "k_norm", width=head_dim)
        y = grouped_attention(
            t,
            q,
            k,
            v,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            window=window,
            rotary=rotary,
            cached=cached,
            masked=masked,
            mask=mask,
        )
        return linear(t, y, names[3], x.shape[-1], bias=out_bias)


def grouped_attention(
    t: Tape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    heads: Dim,
    kv_heads: Dim,
    head_dim: Dim,
    window: int | None = None,
    rotary: bool | Literal["joined"] = True,
    cached: bool = True,
    sdpa: bool = True,
    capped: bool = False,
    masked: bool = True,
    mask: Tensor | None = None,
    upcast: bool = True,
    sinks: bool = False,
    broadcast: bool = False,
) -> Tensor:
    """Rotate q and k, append k and v to the cache, attend: q [b, s, heads·head_dim], k and v [b, s, kv_heads·head_dim] -> like q.

    `joined`: what is rotated of a head and what is not become one by torch.cat, head by head.
    """
    if rotary:
        q, k = rope(t, q, "q", head_dim), rope(t, k, "k", head_dim)
    if cached:
        cache_kv(t, kv_heads, head_dim, window=window)
    return attention(
        t,
        q,
        k,
        v,
        heads=heads,
        kv_heads=kv_heads,
        window=window,
        past=cached,
        sdpa=sdpa,
        capped=capped,
        masked=masked,
        mask=mask,
        upcast=upcast,
        sinks=sinks,
        broadcast=broadcast,
        by_head=rotary == "joined",
    )


def cache_kv(t: Tape, kv_heads: int, head_dim: int, v_dim: int | None = None, window: int | None = None) -> None:
    """Note a cache of keys and values, [kv_heads, head_dim] per token each."""
    t.cache("keys", "k", (kv_heads, head_dim), window=window)
    t.cache("values", "v", (kv_heads, v_dim or head_dim), window=window)


def gated_mlp(
    t: Tape,
    x: Tensor,
    ffn: Dim,
    *,
    bias: bool = False,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
    module: str = "mlp",
) -> Tensor:
    """SwiGLU and its like: [b, s, hidden] -> [b, s, hidden]."""
    with t.module(module, x, part="mlp"):
        if t.kernels.adapters == "fused":
            return lora_mlp(t, x, ffn, names)
        return linear(t, gated(t, x, names[0], names[1], ffn, bias=bias), names[2], x.shape[-1], bias=bias)


def plain_mlp(
    t: Tape, x: Tensor, ffn: Dim, *, bias: bool = True, names: tuple[str, str] = ("fc1", "fc2"), module: str = "mlp", act: str = "gelu"
) -> Tensor:
    """Two linears with the activation `act` between: [b, s, hidden] -> [b, s, hidden]."""
    with t.module(module, x, part="mlp"):
        return linear(t, activate(t, linear(t, x, names[0], ffn, bias=bias), act), names[1], x.shape[-1], bias=bias)


def moe(
    t: Tape,
    x: Tensor,
    *,
    ffn: Dim,
    n_experts: Dim,
    top_k: int,
    shared_ffn: Dim | None = None,
    shared_gate: bool = False,
    router: str = "gate",
    up: tuple[str, ...] = ("experts.{e}.gate_proj.weight", "experts.{e}.up_proj.weight"),
    down: str = "experts.{e}.down_proj.weight",
    shared: str = "shared_experts",
    correction: str | None = None,
    normalised: bool = False,
    fp32_weights: bool = False,
    module: str = "mlp",
) -> Tensor:
    """Routed experts, and shared ones beside them: [b, s, hidden] -> [b, s, hidden].

    `shared_ffn` is the width of all shared experts together, `shared_gate` Qwen's sigmoid gate on them (which run first there),
    `correction` the name of a per-expert routing bias that is a buffer (DeepSeek-V3's e_score_correction_bias, fp32). The weights of a
    token's experts may be `normalised` to a sum of one, and stay in fp32 (`fp32_weights`) where they are applied.
    """
    with t.module(module, x, part="experts"):
        first = t.hold(gated_mlp(t, x, shared_ffn, module=shared)) if shared_ffn and shared_gate else None
        probabilities = route(t, x, router, n_experts)
        if correction:
            t.weight(correction, (n_experts,), "buffer", dtype="fp32")

        def beside() -> Tensor:
            s = first or gated_mlp(t, x, shared_ffn or ffn, module=shared)
            if not shared_gate:
                return s
            share = linear(t, x, f"{shared}_gate", 1)
            return multiply(t, s, t.op(f"{shared}_gate.sigmoid", (share,), share.shape, saves_out=True), "shared_gated")

        y = experts(
            t,
            x,
            probabilities,
            ffn=ffn,
            n_experts=n_experts,
            top_k=top_k,
            up=up,
            down=down,
            normalised=normalised,
            fp32_weights=fp32_weights,
            beside=beside if shared_ffn else None,
        )
        return add(t, y, beside(), "shared") if shared_ffn and t.kernels.experts != "reordered" else y
