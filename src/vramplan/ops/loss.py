"""Losses over the vocabulary, from logits [b, s, vocab]."""

from __future__ import annotations

from ..tape import Dim, Tape, Tensor


def cross_entropy(t: Tape, logits: Tensor) -> Tensor:
    """Mean cross-entropy with full logits: [b, s, vocab] -> [1].

    The logits go to fp32, log-softmax makes as much again and keeps it; backward makes the gradient of the log-probabilities and that of
    the fp32 logits, each [b·s, vocab] in fp32, then casts. Source: transformers 5.23 `loss/loss_utils.py` ForCausalLMLoss (labels are
    shifted, not logits, since 4.50); `aten::_log_softmax`, `aten::nll_loss_forward` (pytorch `derivatives.yaml`).
    """
    with t.module("loss", logits):
        upcast = t.op("float", (logits,), logits.shape, itemsize=4) if logits.itemsize != 4 else logits
        log_softmax = t.op("log_softmax", (upcast,), logits.shape, itemsize=4, saves_out=True)
        return t.op("nll_loss", (t.hold(log_softmax),), (Dim(1),), itemsize=4)
