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
    x = t.op(name, (ids,), (*ids.shape, width), itemsize=t.itemsize, weights=(weight,), saves=(ids,))
    x.grad = x.grad or (t.method is not None and t.method.inputs_need_gradients())
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
    return project(t, x, name, out, tuple(weights))


def project(t: Tape, x: Tensor, name: str, out: int, weights: tuple[Weight, ...]) -> Tensor:
    """[..., in] -> [..., out] by the first of `weights`, and by what the training method adds to it.

    A weight that is packed (QLoRA) is unpacked into a workspace, forward and backward, and keeps no input. Under autocast the input and
    the weights are copied to the lower precision (aten `autocast_mode.cpp`, `cached_cast`); backward needs the weights' copies.
    """
    unpacked = t.method.unpacked(weights[0]) if t.method else 0
    entry = lowered(t, x, f"{name}.input")
    casts = () if unpacked else t.cast_weights(weights)
    y = t.op(
        name,
        (entry,),
        (*x.shape[:-1], out),
        itemsize=t.autocast or x.itemsize,
        weights=weights,
        flops=2 * numel(x.shape) * int(out),
        saves=(entry,),
        extra=casts,
        workspace=unpacked,
        backward_workspace=unpacked,
    )
    return t.method.adapt(t, x, y, weights[0]) if t.method else y


def lowered(t: Tape, x: Tensor, name: str) -> Tensor:
    """`x`, or under autocast its copy in the lower precision: each op that asks for one makes its own."""
    if not t.autocast or x.itemsize <= t.autocast:
        return x
    return t.op(f"{name}.autocast", (x,), x.shape, itemsize=t.autocast)


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
        logits = project(t, last, name, vocab, weights)
    return t.op(f"{name}.float", (logits,), logits.shape, itemsize=4) if t.kernels.logits == "all-fp32" else logits
