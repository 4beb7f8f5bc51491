"""The loss over a vocabulary that ranks share: each has the logits of its words."""

from __future__ import annotations

from ..dim import Dim
from ..tape import Tape
from ..tensors import Tensor


def parallel_cross_entropy(t: Tape, logits: Tensor) -> Tensor:
    """Cross-entropy of DTensors within `loss_parallel`: [b, s, vocab] -> [1].

    Logits in fp32, then without their row's maximum, whose exponentials are a tensor for a moment, then their log-softmax, which backward
    keeps. Backward makes zeros, which get a one in each row, the exponentials, the sum of both and its product with the loss's gradient.

    Source: pytorch 2.13 `distributed/tensor/parallel/loss.py`, _log_softmax and _nll_loss_and_log_softmax_backward.
    """
    with t.module("loss", logits):
        x = logits if logits.itemsize == 4 else t.hold(t.op("float", (logits,), logits.shape, itemsize=4))
        shifted = t.op("shifted", (x,), x.shape, itemsize=4, workspace=x.nbytes, passes=True)
        y = t.hold(t.op("log_softmax", (shifted,), x.shape, itemsize=4, saves_out=True, passes=True))
        return t.op("nll_loss", (y,), (Dim(1),), itemsize=4, saves=(y,), backward_workspace=2 * y.nbytes)
