"""Cross-entropy in chunks, of logits in fp32 that the training loop's variable holds from the end of one forward pass to that of the next.

So a set of logits is there all the time: the framework counts it (`held`), the ops here only what comes beside it.
"""

from __future__ import annotations

from ..dim import Dim, numel
from ..tape import Tape
from ..tensors import Tensor


def held(logits: Tensor) -> int:
    """Bytes of logits [b, s, vocab] in fp32."""
    return numel(logits.shape) * 4


def output(t: Tape, logits: Tensor) -> Tensor:
    """Logits [b, s, vocab] as they leave the model, in fp32: for a moment the pass before's are there too. -> [1], which stands for them.

    Source: Lightning 2.6 `fabric/plugins/precision/half.py`, HalfPrecision.convert_output; MixedPrecision and BitsandbytesPrecision alike.
    """
    return t.op("output", (logits,), (Dim(1),), itemsize=4, workspace=held(logits) if logits.itemsize < 4 else 0)


def chunked_cross_entropy(t: Tape, logits: Tensor, *, rows: int) -> Tensor:
    """Cross-entropy of logits [b, s, vocab] that the head made in chunks of `rows` positions: -> [1].

    Each chunk's log-softmax is freed when its gradient is made, so that all of the two together are as large as the logits, and two chunks
    more. Source: LitGPT 0.5.13 `litgpt/utils.py` chunked_cross_entropy, `litgpt/finetune/lora.py` fit; `aten::_log_softmax`,
    `aten::nll_loss_forward` (pytorch `derivatives.yaml`).
    """
    _cast_each(t, -(-int(logits.shape[1]) // rows))
    out, every = output(t, logits), held(logits)
    piece = every // int(logits.shape[1]) * min(rows, int(logits.shape[1]))
    with t.module("loss"):
        return t.op("nll_loss", (out,), (Dim(1),), itemsize=4, workspace=every, backward_workspace=every + 2 * piece)


def _cast_each(t: Tape, chunks: int) -> None:
    """Under autocast each of the head's products casts its frozen matrix anew, and backward keeps all copies (`cached_cast`)."""
    for op in t.ops:
        if any(weight.kind == "head" and not weight.trained for weight in op.weights):
            for cast in op.writes[1:]:
                cast.shape = (chunks, *cast.shape[1:])


def split_cross_entropy(t: Tape, logits: Tensor) -> Tensor:
    """Cross-entropy of whole logits [b, s, vocab], taken over chunks of tokens: -> [1].

    The last position goes, which with several sequences makes a copy. Backward joins the chunks' gradients into one as large as the logits.
    Source: as `chunked_cross_entropy`, and LitGPT 0.5.13 `litgpt/finetune/full.py` fit.
    """
    out, every = output(t, logits), held(logits)
    copies = 2 if logits.shape[0] > 1 else 1
    with t.module("loss"):
        return t.op("nll_loss", (out,), (Dim(1),), itemsize=4, workspace=copies * every, backward_workspace=2 * every)


def chunked_output_loss(t: Tape, logits: Tensor, *, chunks: int) -> Tensor:
    """Cross-entropy of logits [b, s, vocab] that the head made in `chunks` pieces of positions, each sent to fp32 by itself: -> [1].

    All pieces' log-softmax is kept. A head that trains gets a gradient of each piece; the second is added to the first in a third tensor,
    the others in place (seen on a CPU; `torch/csrc/autograd/input_buffer.cpp`).
    Source: torchtune 0.6.1 `modules/loss/ce_chunked_output_loss.py`, `modules/transformer.py` chunked_output.
    """
    every = held(logits)
    for op in t.ops:
        if op.writes[0] is logits:
            op.backward_workspace += 2 * t.itemsize * sum(numel(weight.shape) for weight in op.weights if weight.trained)
    with t.module("loss"):
        log_softmax = t.tensor("log_softmax", logits.shape, itemsize=4)
        extra, piece = (log_softmax,), every // chunks
        return t.op("nll_loss", (logits,), (Dim(1),), itemsize=4, saves=extra, extra=extra, workspace=piece, backward_workspace=0)


def sliced_cross_entropy(t: Tape, logits: Tensor, *, chunks: int) -> Tensor:
    """Cross-entropy of whole logits [b, s, vocab], a slice of the positions after the other sent to fp32: -> [1].

    Every slice's log-softmax is kept. Backward goes from the last slice to the first, of which each frees its log-softmax and leaves a
    gradient in the logits' dtype; these are then joined in another tensor.
    Source: torchtitan commit e23bb707d `components/loss.py` chunked_cross_entropy_loss; `split_backward`, pytorch `FunctionsManual.cpp`.
    """
    every = held(logits)
    piece, gradient = every // chunks, logits.nbytes
    with t.module("loss", logits):
        log_softmax = t.tensor("log_softmax", logits.shape, itemsize=4)
        within = max(every + 2 * piece, 2 * gradient) - gradient
        kept = (log_softmax,)
        return t.op(
            "nll_loss",
            (logits,),
            (Dim(1),),
            itemsize=4,
            saves=kept,
            extra=kept,
            workspace=piece,
            backward_workspace=within,
            overwrites="kept",
        )
