"""Normalisations over the last dimension."""

from __future__ import annotations

from ..tape import Dim, Tape, Tensor


def rms_norm(t: Tape, x: Tensor, name: str, *, weight: bool = True, width: int = 0, itemsize: int = 0) -> Tensor:
    """x / rms(x) · w: [..., width] -> [..., width].

    `upcast`, as transformers' own LlamaRMSNorm: x goes to fp32, which backward keeps, with the reciprocal root [..., 1] in fp32 and the
    normed x in the model's dtype (transformers 5.23 `models/llama/modeling_llama.py`). `fused` keeps x and the reciprocal root
    (`aten::_fused_rms_norm`, pytorch `derivatives.yaml`). `width` is that of the weight where it is not x's
    last dimension, `itemsize` that of the result where it is not x's.
    """
    weights = (t.weight(f"{name}.weight", (width or x.shape[-1],), "norm"),) if weight else ()
    rstd_shape = groups(x, width)
    if t.kernels.norm == "fused":
        rstd = t.tensor(f"{name}.rstd", rstd_shape, itemsize=4)
        return t.op(name, (x,), x.shape, weights=weights, saves=(x, rstd), extra=(rstd,), always=True)
    upcast = x if x.itemsize == 4 else t.op(f"{name}.float", (x,), x.shape, itemsize=4)
    rstd = t.op(f"{name}.rstd", (upcast,), rstd_shape, itemsize=4)
    normed = t.op(f"{name}.normed", (upcast, rstd), x.shape, itemsize=4, saves=(upcast, rstd))
    size = itemsize or x.itemsize
    cast = normed if size == 4 else t.op(f"{name}.cast", (normed,), x.shape, itemsize=size)
    return t.op(name, (cast,), x.shape, itemsize=size, weights=weights, saves=(cast,)) if weight else cast


def groups(x: Tensor, width: int = 0) -> tuple[int, ...]:
    """The shape of one statistic per normalised vector: [..., 1], or [..., heads] where vectors of `width` stand side by side."""
    return (*x.shape[:-1], Dim(int(x.shape[-1]) // int(width) if width else 1))


def layer_norm(t: Tape, x: Tensor, name: str, *, bias: bool = True, weight: bool = True) -> Tensor:
    """(x − mean) / std · w + b: [..., width] -> [..., width]. Backward keeps x, mean and reciprocal deviation (fp32, [..., 1]).

    Source: `aten::native_layer_norm`, pytorch `derivatives.yaml`.
    """
    names = [f"{name}.weight"] * weight + [f"{name}.bias"] * bias
    weights = tuple(t.weight(n, (x.shape[-1],), "norm") for n in names)
    stats = t.tensor(f"{name}.stats", (*x.shape[:-1], Dim(2)), itemsize=4)
    return t.op(name, (x,), x.shape, weights=weights, saves=(x, stats), extra=(stats,), always=True)
