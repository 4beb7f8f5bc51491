"""The gated delta net (Yang et al. 2024, arXiv:2412.06464), the linear attention of Qwen3-Next and Qwen3.5.

Queries, keys and values pass one short causal convolution; then a state of key_dim × value_dim per value head is decayed and corrected
token by token. It has no cache that grows: a layer keeps the last columns of the convolution and the state, whatever the context.
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import activation, causal_conv, gated_delta_rule, linear
from ..ops.norm_fp32 import gated_rms_norm
from ..tape import Tape, Tensor


def gated_delta_net(
    t: Tape, x: Tensor, *, key_heads: Dim, value_heads: Dim, key_dim: Dim, value_dim: Dim, kernel: Dim, fused: bool
) -> Tensor:
    """[b, s, hidden] -> [b, s, hidden]; state [value_heads, key_dim, value_dim] per sequence, in fp32.

    `fused`: the projections of q, k, v and z are one matrix, those of b and a another (Qwen3-Next); else four matrices (Qwen3.5).
    transformers (5.23 `torch_chunk_gated_delta_rule`) and flash-linear-attention return the state in fp32, and the cache keeps it so.
    """
    b, s, _ = x.shape
    keys, values = key_heads * key_dim, value_heads * value_dim
    with t.module("linear_attn", x, part="attention"):
        if fused:
            qkvz = linear(t, x, "in_proj_qkvz", 2 * keys + 2 * values)
            qkv = t.op("qkv", (qkvz,), (b, s, 2 * keys + values))
            z = t.view(qkvz, (b, s, values))
            rates = linear(t, x, "in_proj_ba", 2 * value_heads)
        else:
            qkv = linear(t, x, "in_proj_qkv", 2 * keys + values)
            z = linear(t, x, "in_proj_z", values)
            rates = linear(t, x, "in_proj_b", value_heads)
            t.hold(linear(t, x, "in_proj_a", value_heads))
        mixed = activation(t, causal_conv(t, qkv, "conv1d", kernel, bias=False))
        decays = tuple(t.weight(name, (value_heads,), "norm") for name in ("A_log", "dt_bias"))
        beta = t.op("beta", (rates,), (b, s, value_heads), saves_out=True)
        g = t.op("g", (rates,), (b, s, value_heads), itemsize=4, weights=decays, saves=(rates,))
        y = gated_delta_rule(t, (mixed, beta, g), (b, s, values), (value_heads, key_dim, value_dim), state_dtype="fp32")
        y = gated_rms_norm(t, y, z, "norm", width=value_dim)
        return linear(t, y, "out_proj", x.shape[-1])
