"""What ends a model in TRL's preference trainers, where that is no fused head (ops/fused_loss.py): a score, or ORPO's two losses.

What comes after, of a few numbers for each token, is left out.
"""

from __future__ import annotations

from ..dim import Dim, numel
from ..tape import Tape
from ..tensors import Tensor
from .fused_loss import take_head
from .product import product


def score(t: Tape) -> Tensor:
    """One number for each sequence, by a linear layer over all positions: hidden [b, s, hidden] -> loss [1].

    The layer is new and trains, beside adapters too (PEFT's task type SEQ_CLS).
    Source: transformers 5.23 `modeling_layers.py` GenericForSequenceClassification; TRL 1.16 `trainer/reward_trainer.py` compute_loss.
    """
    hidden, head = take_head(t)
    head.tied = False
    t.weights = [weight for weight in t.weights if weight.kind != "head"]
    weight = t.weight("score.weight", (1, hidden.shape[-1]), "head")
    weight.trained = True
    scores = product(t, hidden, "score", 1, (weight,))
    with t.module("loss", scores):
        return t.op("pooled", (scores,), (Dim(1),), itemsize=4)


def odds_ratio(t: Tape) -> Tensor:
    """ORPO: cross-entropy of the chosen half and log-probabilities of both, over all logits: [2b, s, vocab] -> loss [1].

    Under autocast all logits are brought to fp32 first. The chosen ones are copied (a single sequence is not), their log-softmax is
    kept in the logits' dtype, and so are the logits themselves. Backward makes each part's gradient as large as the whole.
    Source: TRL 1.16 `experimental/orpo/orpo_trainer.py` concatenated_forward, `kernels/logprob_entropy.py`; accelerate 1.15
    `utils/operations.py` convert_outputs_to_fp32.
    """
    logits = t.ops[-1].writes[0]
    if t.autocast and logits.itemsize != 4:
        logits = t.op("logits.float", (logits,), logits.shape, itemsize=4)
    size, (sequences, tokens, vocab) = logits.itemsize, logits.shape
    half = (Dim(int(sequences) // 2, "chosen"), Dim(int(tokens) - 1, "tokens - 1"), vocab)
    part, padded = numel(half) * size, numel((half[0], tokens, vocab)) * size
    with t.module("loss", logits):
        with t.module("cross_entropy"):
            if half[0] > 1:
                chosen = t.hold(t.op("chosen", (logits,), half, itemsize=size, backward_workspace=padded - part))
                log_softmax = t.op("log_softmax", (chosen,), half, itemsize=size, saves_out=True)
            else:
                whole = logits.nbytes + padded - 3 * part
                log_softmax = t.op("log_softmax", (t.view(logits, half),), half, itemsize=size, saves_out=True, backward_workspace=whole)
            nll = t.op("nll_loss", (log_softmax,), (Dim(1),), itemsize=4)
        ratios = t.op("log_probs", (logits,), (sequences, tokens), itemsize=4, saves=(logits,))
        return t.op("sum", (nll, ratios), (Dim(1),), itemsize=4)
