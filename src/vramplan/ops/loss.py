"""Losses over the vocabulary, from logits [b, s, vocab]."""

from __future__ import annotations

from dataclasses import dataclass

from ..dim import Dim
from ..tape import Tape
from ..tensors import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A plain cross-entropy's variant: whether the logits go to fp32, and whether a copy without the last position's is made of them."""

    upcast: bool = True
    shifts_logits: bool = False


def cross_entropy(t: Tape, logits: Tensor, loss: Loss = Loss()) -> Tensor:
    """Mean cross-entropy with full logits: [b, s, vocab] -> [1].

    The logits go to fp32 (`upcast`), log-softmax makes as much again and keeps it; backward makes the gradient of the log-probabilities and
    that of the logits, each [b·s, vocab] in fp32, then casts. Not `upcast`, all of them have the logits' own dtype, but under autocast
    (which copies bf16 to fp32 first). Where the logits are shifted and not the labels, a copy [b, s − 1, vocab] goes in.
    Source: transformers 5.23 `loss/loss_utils.py` ForCausalLMLoss, and `engines/train/transformers_versions.py` for those before;
    `aten::_log_softmax`, `aten::nll_loss_forward` (pytorch `derivatives.yaml`).
    """
    with t.module("loss", logits):
        x = logits
        if x.itemsize != 4 and loss.upcast:
            x = t.hold(t.op("float", (x,), x.shape, itemsize=4))
        if loss.shifts_logits:
            shape = (x.shape[0], Dim(int(x.shape[1]) - 1, "tokens - 1"), x.shape[2])
            x = t.hold(t.op("shift", (x,), shape, itemsize=x.itemsize))
        if x.itemsize != 4 and t.autocast and t.kernels.softmax == "copied":
            x = t.op("autocast", (x,), x.shape, itemsize=4)
        size = 4 if t.autocast else x.itemsize
        kept = (x,) if t.kernels.softmax_keeps == "both" else ()
        log_softmax = t.op("log_softmax", (x,), x.shape, itemsize=size, saves=kept, saves_out=True)
        return t.op("nll_loss", (t.hold(log_softmax),), (Dim(1),), itemsize=4)


def compiled_cross_entropy(t: Tape, logits: Tensor) -> Tensor:
    """The same as one kernel of torch.compile: [b, s, vocab] -> [1]. It reads the logits as they are and notes two numbers of each row.

    Backward keeps the logits and those numbers, and makes the logits' gradient in their own dtype. Source: torch `_inductor/lowering.py`
    (a reduction is recomputed in place of a tensor in fp32), torchtitan 0.2.2 `components/loss.py` build_cross_entropy_loss.
    """
    with t.module("loss", logits):
        rows = t.tensor("row statistics", (*logits.shape[:-1], Dim(2)), itemsize=4)
        return t.op("cross_entropy", (logits,), (Dim(1),), itemsize=4, saves=(logits, rows), extra=(rows,))


def vocabulary_parallel_cross_entropy(t: Tape, logits: Tensor, *, in_place: bool = False) -> Tensor:
    """Cross-entropy of logits [b, s, vocab], of which a rank may have a part: -> [1].

    The logits go to fp32, where their softmax takes their place; backward keeps it, makes the gradient in it and casts that to the logits'
    dtype (Megatron-Core 0.19 `core/tensor_parallel/cross_entropy.py`, its fused variant alike). `in_place` the gradient is written over the
    logits in the forward pass (TransformerEngine 2.9 `pytorch/cross_entropy.py`). Targets and masks, [b, s], are left out.
    """
    with t.module("loss", logits):
        if in_place:
            return t.op("cross_entropy", (logits,), (Dim(1),), itemsize=4, saves=(logits,), overwrites="kept")
        softmax = t.tensor("loss.softmax", logits.shape, itemsize=4)
        return t.op("cross_entropy", (logits,), (Dim(1),), itemsize=4, saves=(softmax,), extra=(softmax,))
