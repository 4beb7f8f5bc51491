"""Logits of every position, as masked language models make them."""

from __future__ import annotations

from ..dim import numel
from ..tape import Tape
from ..tensors import Kind, Tensor, Weight


def all_logits(t: Tape, x: Tensor, name: str, vocab: int, *, tied: Weight | None, bias: Kind | None) -> Tensor:
    """y = x Eᵀ + b: [b, s, hidden] -> [b, s, vocab], E the embedding's weight, or one of the head's own. `bias` is that weight's kind.

    Backward keeps x. FLOPs: 2 · rows · hidden · vocab. Source: `aten::addmm` in torch `utils/flop_counter.py`; transformers 5.23
    `models/bert/modeling_bert.py`, BertLMPredictionHead, whose bias is a parameter beside the decoder.
    """
    weight = tied or t.weight(f"{name}.decoder.weight", (vocab, x.shape[-1]), "head")
    weight.tied = tied is not None
    weights = (weight, t.weight(f"{name}.bias", (vocab,), bias)) if bias else (weight,)
    return t.op(name, (x,), (*x.shape[:-1], vocab), weights=weights, flops=2 * numel(x.shape) * int(vocab), saves=(x,))
