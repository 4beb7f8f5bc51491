"""What TRL puts at the end of a model in place of all logits and their cross-entropy: a fused head, a score, or ORPO's two losses.

Source: TRL 1.16 as it runs on a GPU, where Triton is. What comes after, of a few numbers for each token, is left out.
"""

from __future__ import annotations

from itertools import pairwise

from ..tape import Dim, Tape, Tensor, numel
from .fused_loss import take_head
from .product import product

TOKENS, VOCABULARY = 4096, 32_768
"""Tokens and columns of the fused head's tile of logits, whatever the model has: TRL 1.16 `kernels/chunked_logprob.py`
TOKEN_CHUNK_SIZE, `trainer/utils.py` _CHUNKED_LOGPROB_CHUNK_SIZE."""


def log_probs(t: Tape, scored: int) -> Tensor:
    """Log-probabilities of the last `scored` tokens of each sequence by a fused head: hidden [b, s, hidden] -> loss [1].

    The states that predict them are gathered and kept, [rows, hidden]. A tile of the logits at a time is made, forward and backward;
    under autocast the states and the head are cast a tile at a time too. The gradients of states and head are summed in fp32 and then
    brought to their dtypes. Source: TRL 1.16 `trainer/utils.py` add_fused_lm_head, `kernels/chunked_logprob.py` ChunkedLogProbFunction.
    """
    hidden, head = take_head(t)
    sequences, tokens, width = hidden.shape
    rows = Dim(numel((sequences, scored)), "scored tokens")
    size, stored = hidden.itemsize, 4 if head.dtype == "fp32" else t.itemsize
    compute = t.autocast or size
    states, matrix = numel((rows, width)), numel(head.shape) if head.trained else 0
    block = min(int(rows), TOKENS)
    tile = block * VOCABULARY * compute + (block * int(width) * compute if size != compute else 0)
    columns = [min(VOCABULARY, left) for left in range(int(head.shape[0]), 0, -VOCABULARY)]
    casts = [n * int(width) * compute if stored != compute else 0 for n in columns]
    summing = sum(max(pairwise(casts), key=sum)) if len(casts) > 1 else casts[0] * (2 if rows > TOKENS else 1)
    bringing = casts[-1] + states * size * (size != 4) + matrix * stored * (stored != 4)
    with t.module("loss", hidden):
        outer = (numel((sequences, tokens - 1)) - rows) * int(width) * size
        gathered = t.op("scored", (hidden,), (rows, width), itemsize=size, backward_workspace=outer)
        kept = t.tensor("loss.statistics", (rows,), 16)
        return t.op(
            "log_probs",
            (gathered,),
            (Dim(1),),
            itemsize=4,
            weights=(head,),
            flops=2 * states * int(head.shape[0]),
            saves=(gathered, kept),
            always=True,
            extra=(kept,),
            workspace=tile + max(casts) + 7 * 4 * int(rows),
            backward_workspace=4 * (states + matrix) + tile + max(summing, bringing) - states * size - matrix * stored,
        )


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
