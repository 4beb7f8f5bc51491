"""Products with a constant, and the soft cap that Gemma 2 puts on its logits."""

from __future__ import annotations

from ..tape import Tape
from ..tensors import Tensor


def scale(t: Tape, x: Tensor, name: str) -> Tensor:
    """x times a constant: same shape. Backward keeps nothing (`aten::mul.Scalar`, pytorch `derivatives.yaml`)."""
    return t.op(name, (x,), x.shape, itemsize=x.itemsize)


def softcap(t: Tape, x: Tensor, name: str) -> Tensor:
    """cap · tanh(x / cap): same shape, three tensors. Backward keeps the tanh (`aten::tanh`, pytorch `derivatives.yaml`: result).

    Source: Gemma Team 2024 (arXiv:2408.00118) section 2; transformers 5.23 `models/gemma2/modeling_gemma2.py`.
    """
    if not t.kernels.softcap:
        return x
    tanh = t.op(f"{name}.tanh", (scale(t, x, f"{name}.divided"),), x.shape, saves_out=True)
    return scale(t, tanh, name)
