"""Embeddings and linear layers."""

from __future__ import annotations

from dataclasses import replace

from ..dim import Dim, numel
from ..tape import Tape
from ..tensors import ORIGINAL, Kind, Tensor, Weight
from .dora import dora
from .fused_lora import fused_lora
from .lora import embedding, lora, routed
from .lora_joined import in_chunks, joined
from .lora_parallel import Parallel, parallel_lora
from .packed import packed_product
from .product import lowered, product
from .workspaces import embedding_backward

__all__ = ["embed", "head", "linear", "lowered", "project"]


def embed(t: Tape, name: str, vocab: int, width: int, ids: Tensor | None = None, *, merges: bool = True) -> tuple[Tensor, Weight]:
    """Look up token embeddings: ids [b, s] int64 -> [b, s, width]; the weight is [vocab, width].

    Backward keeps the ids; the model's forward holds its `inputs_embeds`. What comes of images then takes the places of their tokens,
    unless the caller `merges` them later.

    Source: `aten::embedding` and `embedding_dense_backward` (pytorch `native_functions.yaml`, `derivatives.yaml`).
    """
    weight = t.weight(f"{name}.weight", (vocab, width), "embed", active=1)
    ids = ids or t.tensor(f"{name}.ids", (t.sequences, t.tokens), itemsize=8)
    sort = sum(nbytes for _, nbytes in embedding_backward(numel(ids.shape)))
    x = t.op(name, (ids,), (*ids.shape, width), itemsize=t.itemsize, weights=(weight,), saves=(ids,), backward_workspace=sort)
    adapter = t.method.adapter(t.prefix + name, weight) if t.method else None
    if adapter:
        x = embedding(t, ids, x, name, vocab, adapter)
    if t.method and t.method.inputs_need_gradients() and not any(op.writes[0].grad for op in t.ops):
        x.grad, x.saved = True, 1  # a leaf, which the node that gathers its gradient holds (torch `autograd/functions/accumulate_grad.h`)
    x = t.hold(x)
    return t.merged(x) if merges else x, weight


def linear(
    t: Tape,
    x: Tensor,
    name: str,
    out: int,
    *,
    bias: bool = False,
    kind: Kind = "linear",
    dtype: str | None = None,
    suffix: str = ".weight",
    parts: tuple[int, ...] = (),
) -> Tensor:
    """y = x Wᵀ (+ b): [..., in] -> [..., out], W [out, in], which may join several matrices of `parts` rows."""
    width = x.shape[-1]
    weights = [t.weight(name + suffix, (out, width), kind, dtype=dtype)]
    weights[0].parts = parts
    if bias:
        weights.append(t.weight(f"{name}.bias", (out,), kind, dtype=dtype))
    return project(t, x, name, out, tuple(weights))


def project(t: Tape, x: Tensor, name: str, out: int, weights: tuple[Weight, ...]) -> Tensor:
    """[..., in] -> [..., out] by the first of `weights`, packed or plain, and the training method's adapter beside it."""
    if t.method is None:
        return product(t, x, name, out, weights)
    packed, adapter = t.method.packed(weights[0]), t.method.adapter(t.prefix + name, weights[0])
    if adapter and t.kernels.adapters == "fused":
        return fused_lora(t, x, name, out, weights, adapter)
    if adapter and adapter.merged:
        return routed(t, x, name, out, weights, adapter)
    y = packed_product(t, x, name, out, weights, packed) if packed else product(t, x, name, out, weights)
    if adapter is None:
        return y
    if isinstance(adapter, Parallel):
        return parallel_lora(t, x, y, adapter)
    if adapter.parts:
        return joined(t, x, y, name, weights[0].parts, adapter)
    if adapter.rows:
        return in_chunks(t, x, y, name, adapter)
    return dora(t, x, y, name, weights, adapter) if adapter.dora else lora(t, x, y, name, adapter)


def head(t: Tape, x: Tensor, name: str, vocab: int, *, tied: Weight | None = None, bias: bool = False) -> Tensor:
    """Logits: [b, s, hidden] -> [b, 1 or s, vocab]; `tied` shares the embedding's weight. Which positions, the kernels say.

    transformers since 4.45 (`num_logits_to_keep`, later `logits_to_keep`) and every serving engine compute the last position's only.
    """
    rows = Dim(1, "last token") if t.kernels.logits == "last" else x.shape[-2]
    last = t.view(t.hold(x), (*x.shape[:-2], rows, x.shape[-1]))
    if tied is None or not t.kernels.tied:
        logits = linear(t, last, name, vocab, bias=bias, kind="head")
    else:
        tied.tied = True
        tied = own(t, tied, name)
        weights = (tied, t.weight(f"{name}.bias", (vocab,), "head")) if bias else (tied,)
        logits = project(t, last, name, vocab, weights)
    return t.op(f"{name}.float", (logits,), logits.shape, itemsize=4) if t.kernels.logits == "all-fp32" else logits


def own(t: Tape, tied: Weight, name: str) -> Weight:
    """The head's matrix where it is the embeddings': a copy that trains, if the head is among the modules to save, else what is frozen.

    Source: PEFT 0.21 `utils/other.py` ModulesToSaveWrapper: each of two tied modules gets a copy of its own.
    """
    if t.method is None:
        return tied
    if t.method.copies(t.prefix + name):
        copy = replace(tied, name=f"{t.prefix}{name}.weight", kind="head", part="head", tied=False, trained=True)
        t.weights.append(copy)
        return copy
    return next((weight for weight in t.weights if weight.name == tied.name + ORIGINAL), tied)
