"""Normalisations over the last dimension."""

from __future__ import annotations

from typing import Literal

from ..dim import Dim
from ..tape import Tape
from ..tensors import Tensor, Weight

SQUARES = 3
"""Tensors like x in fp32 that the backward pass of `x.pow(2).mean(-1)` makes beside its result: the mean's gradient over all elements, x
to the first power, twice that (pytorch `derivatives.yaml`, mean.dim and pow.Tensor_Scalar; `pow_backward` in FunctionsManual.cpp)."""
_OVER: dict[str, Literal["", "gradient"]] = {"fused": "", "triton": "", "inplace": "gradient"}


def rms_norm(t: Tape, x: Tensor, name: str, *, weight: bool = True, width: int = 0, itemsize: int = 0) -> Tensor:
    """x / rms(x) · w: [..., width] -> [..., width].

    `upcast`, as transformers' own LlamaRMSNorm: x goes to fp32, which backward keeps, with the reciprocal root [..., 1] in fp32 and the
    normed x in the model's dtype (transformers 5.23 `models/llama/modeling_llama.py`). `fused` keeps x and the reciprocal root
    (`aten::_fused_rms_norm`, pytorch `derivatives.yaml`; autocast runs it in fp32), and so do `triton` and `inplace`, which writes x's
    gradient over that of its result (Liger 0.8 `ops/rms_norm.py`, Unsloth `kernels/rms_layernorm.py`; w's gradient in parts, one for each
    of the GPU's processors, is left out). `fp32` (LitGPT's, 0.5.13 `litgpt/model.py`): see `weighted`. `width` is that of
    the weight where it is not x's last dimension, `itemsize` that of the result where it is not x's.
    """
    weights = (t.weight(f"{name}.weight", (width or x.shape[-1],), "norm"),) if weight else ()
    if t.kernels.norm in ("fused", "triton", "inplace"):
        return fused(t, (x,), name, weights, width)
    upcast = x if x.itemsize == 4 else t.op(f"{name}.float", (x,), x.shape, itemsize=4)
    squares = 0 if t.kernels.norm == "fp32" else SQUARES * upcast.nbytes
    rstd = t.op(f"{name}.rstd", (upcast,), groups(x, width), itemsize=4, backward_workspace=squares, also=(upcast,))
    normed = t.op(f"{name}.normed", (upcast, rstd), x.shape, itemsize=4, saves=(upcast, rstd))
    size = itemsize or x.itemsize
    if t.kernels.norm == "fp32" and weight:
        return weighted(t, normed, name, weights, gain=True, itemsize=size)
    cast = normed if size == 4 else t.op(f"{name}.cast", (normed,), x.shape, itemsize=size)
    return t.op(name, (cast,), x.shape, itemsize=max(size, t.itemsize), weights=weights, saves=(cast,)) if weight else cast


def fused(t: Tape, reads: tuple[Tensor, ...], name: str, weights: tuple[Weight, ...], width: int = 0) -> Tensor:
    """A norm in one kernel: what it reads is kept, with one fp32 statistic for each normalised vector of the first."""
    torch, over = t.kernels.norm == "fused", _OVER[t.kernels.norm]
    if torch and t.autocast:
        reads = tuple(x if x.itemsize == 4 else t.op(f"{name}.float", (x,), x.shape, itemsize=4) for x in reads)
    x = reads[0]
    stat = t.tensor(f"{name}.rstd", groups(x, width), itemsize=4)
    size = t.itemsize if torch else x.itemsize
    return t.op(name, reads, x.shape, itemsize=size, weights=weights, saves=(*reads, stat), extra=(stat,), always=True, overwrites=over)


def weighted(t: Tape, normed: Tensor, name: str, weights: tuple[Weight, ...], *, gain: bool, itemsize: int) -> Tensor:
    """normed · w in fp32, then in `itemsize`. Backward keeps w's copy in fp32 (`gain`) and, for w's gradient, the normed x in fp32."""
    gains = (t.tensor(f"{name}.gain", weights[0].shape, itemsize=4),) if gain else ()
    scaled = t.op(f"{name}.scaled", (normed,), normed.shape, itemsize=4, weights=weights, saves=(normed, *gains), extra=gains)
    return scaled if itemsize == 4 else t.op(name, (scaled,), normed.shape, itemsize=itemsize)


def groups(x: Tensor, width: int = 0) -> tuple[int, ...]:
    """The shape of one statistic per normalised vector: [..., 1], or [..., heads] where vectors of `width` stand side by side."""
    return (*x.shape[:-1], Dim(int(x.shape[-1]) // int(width) if width else 1))


def layer_norm(t: Tape, x: Tensor, name: str, *, bias: bool = True, weight: bool = True) -> Tensor:
    """(x − mean) / std · w + b: [..., width] -> [..., width]. Backward keeps x, mean and reciprocal deviation (fp32, [..., 1]).

    Autocast runs it in fp32. Source: `aten::native_layer_norm`, pytorch `derivatives.yaml`; aten `autocast_mode.h`.
    """
    if t.autocast and x.itemsize < 4:
        x = t.op(f"{name}.float", (x,), x.shape, itemsize=4)
    names = [f"{name}.weight"] * weight + [f"{name}.bias"] * bias
    weights = tuple(t.weight(n, (x.shape[-1],), "norm") for n in names)
    stats = t.tensor(f"{name}.stats", (*x.shape[:-1], Dim(2)), itemsize=4)
    return t.op(name, (x,), x.shape, itemsize=x.itemsize, weights=weights, saves=(x, stats), extra=(stats,), always=True)
