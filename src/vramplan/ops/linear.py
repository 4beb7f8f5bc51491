"""Embeddings and linear layers."""

from __future__ import annotations

from ..tape import Dim, Kind, Tape, Tensor, Weight, numel


def embed(t: Tape, name: str, vocab: int, width: int, ids: Tensor | None = None) -> tuple[Tensor, Weight]:
    """Look up token embeddings: ids [b, s] int64 -> [b, s, width]; the weight is [vocab, width].

    Backward keeps the ids; the model's forward holds its `inputs_embeds`.

    Source: `aten::embedding` and `embedding_dense_backward` (pytorch `native_functions.yaml`, `derivatives.yaml`).
    """
    weight = t.weight(f"{name}.weight", (vocab, width), "embed", active=1)
    ids = ids or t.tensor(f"{name}.ids", (t.sequences, t.tokens), itemsize=8)
    x = t.op(name, (ids,), (*ids.shape, width), weights=(weight,), saves=(ids,))
    return t.hold(x), weight


def linear(
    t: Tape, x: Tensor, name: str, out: int, *, bias: bool = False, kind: Kind = "linear", dtype: str | None = None, suffix: str = ".weight"
) -> Tensor:
    """y = x Wᵀ (+ b): [..., in] -> [..., out], W [out, in]. Backward keeps x. FLOPs: 2 · rows · in · out.

    Source: `aten::addmm` in torch `utils/flop_counter.py` and `derivatives.yaml` (self, mat2 are saved).
    """
    width = x.shape[-1]
    weights = [t.weight(name + suffix, (out, width), kind, dtype=dtype)]
    if bias:
        weights.append(t.weight(f"{name}.bias", (out,), kind, dtype=dtype))
    return t.op(name, (x,), (*x.shape[:-1], out), weights=tuple(weights), flops=2 * numel(x.shape) * int(out), saves=(x,))


def head(t: Tape, x: Tensor, name: str, vocab: int, *, tied: Weight | None = None, bias: bool = False) -> Tensor:
    """Logits: [b, s, hidden] -> [b, 1 or s, vocab]; `tied` shares the embedding's weight. Which positions, the kernels say.

    transformers since 4.45 (`num_logits_to_keep`, later `logits_to_keep`) and every serving engine compute the last position's only.
    """
    rows = Dim(1, "last token") if t.kernels.logits == "last" else x.shape[-2]
    last = t.view(x, (*x.shape[:-2], rows, x.shape[-1]))
    if tied is None:
        logits = linear(t, last, name, vocab, bias=bias, kind="head")
    else:
        tied.tied = True
        weights = (tied, t.weight(f"{name}.bias", (vocab,), "head")) if bias else (tied,)
        flops = 2 * numel(last.shape) * int(vocab)
        logits = t.op(name, (last,), (*last.shape[:-1], vocab), weights=weights, flops=flops, saves=(last,))
    return t.op(f"{name}.float", (logits,), logits.shape, itemsize=4) if t.kernels.logits == "all-fp32" else logits
