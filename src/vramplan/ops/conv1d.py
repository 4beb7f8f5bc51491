"""GPT-2's Conv1D: a linear layer whose weight is stored as [in, out]."""

from __future__ import annotations

from ..tape import Tape
from ..tensors import Tensor
from .linear import project


def conv1d(t: Tape, x: Tensor, name: str, out: int) -> Tensor:
    """y = x W + b: [..., in] -> [..., out], W [in, out]. Backward keeps x. FLOPs: 2 · rows · in · out.

    Source: `transformers.pytorch_utils.Conv1D` (5.23), `aten::addmm` in torch `utils/flop_counter.py`.
    """
    weights = (t.weight(f"{name}.weight", (x.shape[-1], out), "linear"), t.weight(f"{name}.bias", (out,), "linear"))
    return project(t, x, name, out, weights)
