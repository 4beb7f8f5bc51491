"""Activations by their name in a config, where one that keeps x and makes one tensor would be wrong."""

from __future__ import annotations

from ..tape import Tape
from ..tensors import Tensor
from .pointwise import activation, multiply
from .scale import scale


def activate(t: Tape, x: Tensor, name: str) -> Tensor:
    """`name` of x: same shape. Serving engines (`mlp` `merged`) have one kernel for each; transformers (`eager`, 5.23 `activations.py`):

    relu keeps its output, which the next linear keeps anyway; relu2 is a relu and a square; gelu_new is written out in products and a tanh
    (NewGELUActivation keeps x, tanh, 1 + tanh and x/2); quick_gelu is x · sigmoid(1.702 x), of which backward keeps x and the
    sigmoid (QuickGELUActivation). Any other (gelu, silu, gelu_pytorch_tanh, …) keeps x.
    """
    if name == "relu":
        return t.op("act_fn", (x,), x.shape, itemsize=x.itemsize, saves_out=True)
    if t.kernels.mlp != "eager" or name not in ("relu2", "gelu_new", "quick_gelu"):
        return activation(t, x)
    with t.module("", x):
        return {"relu2": _relu2, "gelu_new": _gelu_new, "quick_gelu": _quick_gelu}[name](t, x)


def _relu2(t: Tape, x: Tensor) -> Tensor:
    return activation(t, t.op("relu", (x,), x.shape), "square")


def _gelu_new(t: Tape, x: Tensor) -> Tensor:
    """Autocast runs the power, and so all that follows, in fp32 (aten `autocast_mode.h`)."""
    half = t.op("act_fn.half", (x,), x.shape, itemsize=x.itemsize, saves_out=True)
    size = 4 if t.autocast else x.itemsize
    base = x if x.itemsize == size else t.op("act_fn.float", (x,), x.shape, itemsize=size)
    inner = scale(t, t.op("act_fn.cubic", (base,), x.shape, itemsize=size, saves=(base,)), "act_fn.inner")
    tanh = t.op("act_fn.tanh", (inner,), x.shape, itemsize=size, saves_out=True)
    one = t.op("act_fn.one_plus", (tanh,), x.shape, itemsize=size, saves_out=True)
    return t.op("act_fn", (half, one), x.shape, itemsize=size)


def _quick_gelu(t: Tape, x: Tensor) -> Tensor:
    sigmoid = t.op("act_fn.sigmoid", (scale(t, x, "act_fn.scaled"),), x.shape, itemsize=x.itemsize, saves_out=True)
    return multiply(t, x, sigmoid, "act_fn")


def xielu(t: Tape, x: Tensor) -> Tensor:
    """α x² + β x, or α (exp(x) − 1 − x) + β x below zero, with both α learnt: same shape.

    Source: arXiv:2411.13010; transformers 5.23 `activations.py` XIELUActivation without its CUDA package. Backward keeps x, αx, the
    exponential, the mask x > 0, and the exponential's difference with x if its α trains.
    """
    upper, lower = (t.weight(f"act_fn.{name}", (1,), "norm") for name in ("alpha_p", "alpha_n"))
    for name in ("beta", "eps"):
        t.weight(f"act_fn.{name}", (1,), "buffer")
    if t.kernels.mlp != "eager":
        return activation(t, x)
    with t.module("", x):
        mask = t.op("act_fn.positive", (x,), x.shape, itemsize=1, saves_out=True)
        scaled = t.op("act_fn.alpha_x", (x,), x.shape, weights=(upper,), saves_out=True)
        positive = t.op("act_fn.upper", (scaled, x), x.shape, saves=(x,))
        exponential = t.op("act_fn.expm1", (x,), x.shape, saves_out=True)
        difference = t.op("act_fn.difference", (exponential, x), x.shape)
        negative = t.op("act_fn.lower", (difference, x), x.shape, weights=(lower,), saves=(difference,))
        return t.op("act_fn", (mask, positive, negative), x.shape)
