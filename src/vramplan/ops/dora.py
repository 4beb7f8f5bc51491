"""DoRA: the direction of a weight by a low-rank adapter, its magnitude by a trained vector, as PEFT computes them."""

from __future__ import annotations

from ..tape import Tape
from ..tensors import Tensor, Weight
from .lora import Adapter, cast, dropped, entered, low_rank, matrices
from .packed import unpacked
from .product import lowered, product


def dora(t: Tape, x: Tensor, y: Tensor, module: str, weights: tuple[Weight, ...], adapter: Adapter) -> Tensor:
    """y + (m/‖W + B A‖ − 1) · x Wᵀ + m/‖W + B A‖ · scaling · B A x: x [..., in], y = x Wᵀ (+ bias) [..., out] -> [..., out].

    The layer holds W in the input's precision and B A, [out, in] each, until it returns, and the identity [in, in] that B A is made of.
    Backward keeps the adapter's output and y; with dropout, in place of y, the product of the dropped input with W, and W's copy.
    Source: PEFT 0.21 `tuners/lora/dora.py` DoraLinearLayer, `tuners/lora/variants.py` DoraLinearVariant; Liu et al., arXiv:2402.09353.
    """
    packed, converts = adapter.packed, not (adapter.packed and t.autocast)
    with t.module(f"{module}.lora", x, part="adapters"):
        if packed and not packed.eight:
            y = t.op("clone", (y,), y.shape, itemsize=y.itemsize, passes=True)
        entry = entered(t, x, adapter) if converts else x
        result = _dora(t, t.hold(dropped(t, entry, adapter)), t.hold(y), weights, adapter)
        wide = max(y.itemsize, result.itemsize)
        total = t.op("sum", (y, result), y.shape, itemsize=wide, passes=True)
        return cast(t, total, y.itemsize, "result") if converts else total


def _dora(t: Tape, x: Tensor, y: Tensor, weights: tuple[Weight, ...], adapter: Adapter) -> Tensor:
    """What DoRA adds to y."""
    a, b = matrices(t, x.shape[-1], y.shape[-1], adapter)
    magnitude = t.weight("magnitude.weight", (y.shape[-1],), "linear", dtype=adapter.dtype)
    with t.module("", x, y):
        delta = _delta(t, (a, b), x.itemsize, adapter)
        full = _full(t, weights[0], x.itemsize, adapter)
        norm = _norm(t, delta, full, adapter)
        scale = t.hold(t.op("scale", (norm,), (1, y.shape[-1]), itemsize=adapter.itemsize, weights=(magnitude,), saves=(norm,)))
        high = t.hold(low_rank(t, x, (a, b)))
        if adapter.dropout:
            y = _again(t, x, full, weights[0], y.shape[-1])
        elif len(weights) > 1:
            y = t.op("unbiased", (y,), y.shape, itemsize=y.itemsize, passes=True)
        less = t.op("scale.less_one", (scale,), scale.shape, itemsize=scale.itemsize, passes=True)
        direct = _scaled(t, "direct", less, t.hold(y))
        adapted = _scaled(t, "adapted", scale, high)
        adapted = t.op("scaled", (adapted,), adapted.shape, itemsize=adapted.itemsize)
        return t.op("both", (direct, adapted), direct.shape, itemsize=direct.itemsize, passes=True)


def _delta(t: Tape, weights: tuple[Weight, Weight], itemsize: int, adapter: Adapter) -> Tensor:
    """B A, [in, out] in `itemsize`, by running an identity through the adapter; what autograd keeps of it lives as long as B A does."""
    a, b = weights
    width, size = a.shape[1], t.autocast or adapter.itemsize
    eye = t.op("identity", (), (width, width), itemsize=adapter.itemsize)
    with t.module("", eye):
        entry = eye if size == eye.itemsize else t.op("identity.autocast", (eye,), eye.shape, itemsize=size)
        low = t.op("identity.A", (entry,), (width, a.shape[0]), itemsize=size)
        delta = t.op("identity.B", (low,), (width, b.shape[0]), itemsize=size)
    t.hold(entry)
    t.hold(low)
    return t.hold(cast(t, delta, itemsize, "identity"))


def _full(t: Tape, weight: Weight, itemsize: int, adapter: Adapter) -> Tensor | None:
    """W in the input's precision, [out, in]; None where it is stored so."""
    if adapter.packed:
        return t.hold(unpacked(t, "weight", weight, adapter.packed, itemsize))
    stored = 4 if weight.dtype == "fp32" else t.itemsize
    return None if stored == itemsize else t.hold(t.op("weight.cast", (), weight.shape, itemsize=itemsize))


def _norm(t: Tape, delta: Tensor, full: Tensor | None, adapter: Adapter) -> Tensor:
    """‖W + scaling · B A‖ of each row, [out], and what it is made of."""
    scaled = t.op("delta.scaled", (delta,), delta.shape, itemsize=delta.itemsize)
    total = t.op("delta.added", (scaled, *((full,) if full else ())), delta.shape, itemsize=delta.itemsize)
    return t.op("norm", (total,), (delta.shape[1],), itemsize=delta.itemsize)


def _again(t: Tape, x: Tensor, full: Tensor | None, weight: Weight, out: int) -> Tensor:
    """x Wᵀ of the dropped x; where W was copied, backward keeps that copy."""
    if full is None:
        return product(t, x, "again", out, (weight,))
    copy, entry = lowered(t, full, "again.weight"), lowered(t, x, "again.input")
    return t.op("again", (entry, copy), (*x.shape[:-1], out), itemsize=entry.itemsize, saves=(copy,))


def _scaled(t: Tape, name: str, scale: Tensor, x: Tensor) -> Tensor:
    """scale [1, out] times x [..., out]. Backward keeps x, and scale where x gets a gradient; it makes two products of x's shape, of which
    one is summed to the scale's gradient, and the other goes to x's precision.
    """
    size = max(scale.itemsize, x.itemsize)
    once = x.nbytes // x.itemsize * size
    saves = (scale, x) if x.storage.grad else (x,)
    y = t.op(name, (scale, x), x.shape, itemsize=size, saves=saves, backward_workspace=once * (1 + (x.itemsize != size)))
    scale.spared = x.storage.late
    return y
