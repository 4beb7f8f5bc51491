"""Activations by their name in a config, where one that keeps x and makes one tensor would be wrong."""

from __future__ import annotations

from ..tape import Tape, Tensor
from .pointwise import activation, multiply
from .scale import scale


def activate(t: Tape, x: Tensor, name: str) -> Tensor:
    """`name` of x: same shape. Serving engines (`mlp` `merged`) have one kernel for each; transformers (`eager`, 5.23 `activations.py`):

    relu keeps its output, which the next linear keeps anyway; relu2 is a relu and a square; gelu_new is written out in products and a tanh
    (NewGELUActivation keeps x, tanh, 1 + tanh and x/2); xielu too (XIELUActivation without its CUDA package, arXiv:2411.13010: keeps x, αx,
    the exponential, its difference with x and the mask x > 0); quick_gelu is x · sigmoid(1.702 x), of which backward keeps x and the
    sigmoid (QuickGELUActivation). Any other (gelu, silu, gelu_pytorch_tanh, …) keeps x.
    """
    if name == "relu":
        return t.op("act_fn", (x,), x.shape, itemsize=x.itemsize, saves_out=True)
    if t.kernels.mlp != "eager" or name not in ("relu2", "gelu_new", "quick_gelu", "xielu"):
        return activation(t, x)
    with t.module("", x):
        return {"relu2": _relu2, "gelu_new": _gelu_new, "quick_gelu": _quick_gelu, "xielu": _xielu}[name](t, x)


def _relu2(t: Tape, x: Tensor) -> Tensor:
    return activation(t, t.op("relu", (x,), x.shape), "square")


def _gelu_new(t: Tape, x: Tensor) -> Tensor:
    half = t.op("act_fn.half", (x,), x.shape, saves_out=True)
    inner = scale(t, t.op("act_fn.cubic", (x,), x.shape, saves=(x,)), "act_fn.inner")
    tanh = t.op("act_fn.tanh", (inner,), x.shape, saves_out=True)
    one = t.op("act_fn.one_plus", (tanh,), x.shape, saves_out=True)
    return t.op("act_fn", (half, one), x.shape)


def _quick_gelu(t: Tape, x: Tensor) -> Tensor:
    sigmoid = t.op("act_fn.sigmoid", (scale(t, x, "act_fn.scaled"),), x.shape, itemsize=x.itemsize, saves_out=True)
    return multiply(t, x, sigmoid, "act_fn")


def _xielu(t: Tape, x: Tensor) -> Tensor:
    mask = t.op("act_fn.positive", (x,), x.shape, itemsize=1, saves_out=True)
    scaled = t.op("act_fn.alpha_x", (x,), x.shape, saves_out=True)
    positive = t.op("act_fn.upper", (scaled, x), x.shape, saves=(x,))
    exponential = t.op("act_fn.expm1", (x,), x.shape, saves_out=True)
    difference = t.op("act_fn.difference", (exponential, x), x.shape, saves_out=True)
    negative = t.op("act_fn.lower", (difference, x), x.shape)
    return t.op("act_fn", (mask, positive, negative), x.shape)
