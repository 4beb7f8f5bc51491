"""The gated delta net (Yang et al. 2024, arXiv:2412.06464), the linear attention of Qwen3-Next and Qwen3.5.

Queries, keys and values pass one short causal convolution; then a state of key_dim × value_dim per value head is decayed and corrected
token by token. It has no cache that grows: a layer keeps the last columns of the convolution and the state, whatever the context.
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import activation, causal_conv, gated_delta_rule, linear
from ..ops.delta_rule import Heads, chunked_delta_rule
from ..ops.norm_fp32 import gated_rms_norm
from ..tape import Tape
from ..tensors import Tensor


def gated_delta_net(t: Tape, x: Tensor, heads: Heads, *, kernel: Dim, fused: bool) -> Tensor:
    """[b, s, hidden] -> [b, s, hidden]; state [value heads, key_dim, value_dim] per sequence, in fp32.

    `fused`: the projections of q, k, v and z are one matrix, those of b and a another (Qwen3-Next); else four matrices (Qwen3.5).
    transformers (5.23 `torch_chunk_gated_delta_rule`) and flash-linear-attention return the state in fp32, and the cache keeps it so.
    """
    b, s, _ = x.shape
    values = heads.values * heads.value_dim
    width = 2 * (heads.keys * heads.key_dim) + values
    composed = t.kernels.recurrence == "composed" and int(s) > 1
    with t.module("linear_attn", x, part="attention"):
        if fused:
            both = t.hold(linear(t, x, "in_proj_qkvz", width + values))
            beta = a = t.hold(linear(t, x, "in_proj_ba", 2 * heads.values))
            z, qkv = (
                _parted(t, both, width, values)
                if composed
                else (t.view(both, (b, s, values)), t.op("qkv", (both,), (b, s, width), itemsize=both.itemsize))
            )
        else:
            qkv = linear(t, x, "in_proj_qkv", width)
            z = linear(t, x, "in_proj_z", values)
            beta, a = (t.hold(linear(t, x, name, heads.values)) for name in ("in_proj_b", "in_proj_a"))
        mixed = activation(t, causal_conv(t, qkv, "conv1d", kernel, bias=False))
        beta, g = (
            t.hold(t.op("beta", (beta,), (b, s, heads.values), itemsize=beta.itemsize, saves_out=True)),
            t.hold(_decay(t, a, heads.values)),
        )
        if composed:
            y = chunked_delta_rule(t, t.hold(mixed), beta, g, heads, state_dtype="fp32")
        else:
            y = gated_delta_rule(t, (mixed, beta, g), (b, s, values), (heads.values, heads.key_dim, heads.value_dim), state_dtype="fp32")
        return linear(t, gated_rms_norm(t, y, t.hold(z), "norm", width=heads.value_dim), "out_proj", x.shape[-1])


def _parted(t: Tape, both: Tensor, width: Dim, values: Dim) -> tuple[Tensor, Tensor]:
    """z, and q, k and v joined again: all are copies, since each key head's parts lie side by side (fix_query_key_value_ordering)."""
    shape, size = both.shape[:-1], both.itemsize
    z, parts = t.op("z", (both,), (*shape, values), itemsize=size), t.op("parts", (both,), (*shape, width), itemsize=size)
    return z, t.op("qkv", (parts,), parts.shape, itemsize=size)


def _decay(t: Tape, a: Tensor, heads: Dim) -> Tensor:
    """−exp(A_log) · softplus(a + dt_bias) in fp32: [b, s, heads]."""
    shape = (*a.shape[:-1], heads)
    slope, bias = (t.weight(name, (heads,), "norm") for name in ("A_log", "dt_bias"))
    a = t.op("a", (a,), shape, itemsize=4, weights=(bias,))
    softplus = t.op("softplus", (a,), shape, itemsize=4, saves=(a,))
    return t.op("g", (softplus,), shape, itemsize=4, weights=(slope,), saves=(softplus,))
