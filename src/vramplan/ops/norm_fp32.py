"""RMS norms that stay in fp32 to the end: Gemma's and Qwen3-Next's, and the gated ones of Mamba-2 and the gated delta net."""

from __future__ import annotations

from ..tape import Tape
from ..tensors import Kind, Tensor, Weight
from .norm import SQUARES, fused, groups, rms_norm, weighted


def rms_norm_fp32(t: Tape, x: Tensor, name: str, *, weight: bool = True, width: int = 0, kind: Kind = "norm", gain: bool = True) -> Tensor:
    """x / rms(x) · (1 + w), in fp32 until the result: [..., width] -> [..., width].

    `upcast`: x in fp32, the reciprocal root, 1 + w in fp32 and, for the weight's gradient, the normed x in fp32 are kept for backward
    (`rms_norm` keeps that one in the model's dtype); the product in fp32 is a tensor too. Source: transformers 5.23, Gemma3RMSNorm
    (`models/gemma3/modeling_gemma3.py`) and Qwen3_5RMSNorm. Without `gain` the weight is applied as it is stored (Olmo2RMSNorm). `fused`,
    `triton` and `inplace` kernels are as in `rms_norm`. `kind` is the weight's: that of a router's own norm is the router's.
    """
    weights = (t.weight(f"{name}.weight", (width or x.shape[-1],), kind),) if weight else ()
    if t.kernels.written_out and (name in t.kernels.written_out or not weight):
        return _written_out(t, x, name, weights, width)
    if t.kernels.norm in ("fused", "triton", "inplace"):
        return fused(t, (x,), name, weights, width)
    upcast = t.op(f"{name}.float", (x,), x.shape, itemsize=4)
    squares = SQUARES * upcast.nbytes
    rstd = t.op(f"{name}.rstd", (upcast,), groups(x, width), itemsize=4, backward_workspace=squares, also=(upcast,))
    normed = t.op(f"{name}.normed", (upcast, rstd), x.shape, itemsize=4, saves=(upcast, rstd))
    if weight:
        return weighted(t, normed, name, weights, gain=gain, itemsize=x.itemsize)
    return t.op(name, (normed,), x.shape)


def _written_out(t: Tape, x: Tensor, name: str, weights: tuple[Weight, ...], width: int) -> Tensor:
    """`x.float() · (x.float()² .mean() + ε)^−½ · w`: x twice in fp32 is kept (over heads once), and for w's gradient the product.

    Source: Megatron-Bridge 0.6 `models/gemma/modeling_gemma4.py`, _gemma4_rms_norm and Gemma4SelfAttention.
    """
    upcast = t.op(f"{name}.float", (x,), x.shape, itemsize=4)
    squared = t.op(f"{name}.float_again", (x,), x.shape, itemsize=4) if not width and name != "v_norm" else upcast
    backward = SQUARES * upcast.nbytes
    rstd = t.op(f"{name}.rstd", (squared,), groups(x, width), itemsize=4, saves=(squared,), backward_workspace=backward)
    normed = t.op(f"{name}.normed", (upcast, rstd), x.shape, itemsize=4, saves=(upcast, rstd))
    if weights:
        return weighted(t, normed, name, weights, gain=False, itemsize=x.itemsize)
    return t.op(name, (normed,), x.shape, itemsize=x.itemsize)


def gated_rms_norm(t: Tape, x: Tensor, gate: Tensor, name: str, *, width: int = 0, gate_first: bool = False) -> Tensor:
    """norm(x) · silu(gate), or norm(x · silu(gate)) with `gate_first` (Mamba-2): [..., width] -> [..., width].

    `upcast`: the gate goes through fp32 too. Source: transformers 5.23, Qwen3NextRMSNormGated and MambaRMSNormGated
    (`models/qwen3_next/modeling_qwen3_next.py`, `models/mamba2/modeling_mamba2.py`). `fused`: one kernel that keeps x, the gate and the
    reciprocal root, as `rmsnorm_fn` of mamba-ssm and FusedRMSNormGated of flash-linear-attention.
    """
    if t.kernels.norm == "fused":
        scale = t.weight(f"{name}.weight", (width or x.shape[-1],), "norm")
        return fused(t, (x, gate), name, (scale,), width)
    x_float = x if x.itemsize == 4 or not gate_first else t.op(f"{name}.x_float", (x,), x.shape, itemsize=4)
    normed = x_float if gate_first else rms_norm(t, x, name, width=width)
    upcast = t.op(f"{name}.gate_float", (gate,), x.shape, itemsize=4)
    silu = t.op(f"{name}.silu", (upcast,), x.shape, itemsize=4, saves=(upcast,))
    product = t.op(f"{name}.gated", (normed, silu), x.shape, itemsize=4, saves=(normed, silu))
    if gate_first:
        return rms_norm(t, product, name, width=width, itemsize=x.itemsize)
    return t.op(f"{name}.gated_cast", (product,), x.shape, itemsize=x.itemsize)
