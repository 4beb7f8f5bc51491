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


def fused_cross_entropy(t: Tape, hidden: Tensor, vocab: int, weight_rows: int) -> Tensor:
    """Linear and cross-entropy in one, in chunks of rows: hidden [b, s, hidden] -> [1], no full logits.

    Liger-Kernel `ops/fused_linear_cross_entropy.py`: chunks of ⌈rows / ⌈vocab / hidden⌉⌉ rows rounded up to a power of two; per chunk the
    logits and their gradient in place. The gradients of hidden and of the head are made in the forward pass and kept until backward.
    """
    rows = int(hidden.shape[0]) * int(hidden.shape[1])
    width = int(hidden.shape[-1])
    per_chunk = 1 << max((-(-rows // -(-int(vocab) // width)) - 1).bit_length(), 0)
    workspace = min(per_chunk, rows) * int(vocab) * (hidden.itemsize + 4)
    gradient = t.tensor("fused_loss.gradient", hidden.shape, hidden.itemsize)
    gradient.grad = True
    return t.op(
        "fused_loss",
        (hidden,),
        (Dim(1),),
        itemsize=4,
        extra=(gradient,),
        saves=(gradient,),
        flops=2 * rows * width * int(vocab),
        workspace=workspace + weight_rows,
    )
