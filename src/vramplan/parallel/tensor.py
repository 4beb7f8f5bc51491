"""Tensor parallelism: which sizes of a tape are split over the ranks, by their names.

Column-parallel layers split what they make (heads, ffn, vocabulary), row-parallel ones what they take; the residual stream, norms, routers
and low-rank projections are whole on every rank (Shoeybi et al. 2019, arXiv:1909.08053, section 3). As every size knows how it was made of
named ones, a merged projection of `(heads + 2·kv_heads)·head_dim` splits by itself. Sequence parallelism is not here.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import replace

from ..dim import Dim, numel
from ..errors import BadInput
from ..tape import Tape
from ..tensors import Cache, Op, Tensor, Weight

HEADS = frozenset({"heads", "kv_heads", "key_heads", "value_heads", "mamba_heads", "groups"})
"""Heads of every kind; where there are fewer than ranks, each is copied to several ranks."""
SPLIT = HEADS | {"ffn", "moe_ffn", "expert_ffn", "shared_ffn", "dense_ffn", "vocab", "inner", "vision_heads", "vision_ffn", "adapter"}
"""Names of the sizes that are split."""
VOCABULARY = 64
"""The vocabulary is padded to a multiple of it before it is split (vLLM 0.21 vocab_parallel_embedding.py, DEFAULT_VOCAB_PADDING_SIZE)."""


def tensor_parallel(tape: Tape, degree: int, *, vocabulary: int = VOCABULARY) -> Tape:
    """The tape as one of `degree` ranks has it: weights, caches and activations of its share. Degree 1 is the tape itself.

    The vocabulary is padded to a multiple of `vocabulary` first. Raises BadInput where a size that is split does not divide by the degree
    (kv heads fewer than ranks are copied).
    """
    if degree == 1:
        return tape
    tensors: dict[int, Tensor] = {id(t): replace(t, shape=_shape(t.shape, degree, vocabulary)) for t in tape.tensors}
    for t in tensors.values():
        t.base = tensors.get(id(t.base), t.base)
        t.follows = tensors.get(id(t.follows), t.follows)
    weights = {id(w): _weight(w, degree, vocabulary) for w in tape.weights}
    return replace(
        tape,
        weights=[weights[id(w)] for w in tape.weights],
        caches=[_cache(c, degree) for c in tape.caches],
        tensors=list(tensors.values()),
        tables=[tensors.get(id(t), t) for t in tape.tables],
        ops=[_op(op, tensors, weights, degree, vocabulary) for op in tape.ops],
    )


def part(size: int, degree: int, names: Set[str] = SPLIT, vocabulary: int = VOCABULARY) -> int:
    """A size on one rank, where those of `names` are split.

    >>> part((Dim(32, "heads") + 2 * Dim(8, "kv_heads")) * Dim(128, "head_dim"), 4)
    1536
    """
    if not isinstance(size, Dim):
        return size
    if size.parts is None:
        return Dim(_leaf(int(size), size.label, degree, vocabulary), size.label) if size.label in names else size
    sign, a, b = size.parts
    left, right = part(a, degree, names, vocabulary), part(b, degree, names, vocabulary)
    return left * right if sign == "·" else left + right if sign == "+" else left // right


def _leaf(value: int, name: str, degree: int, vocabulary: int) -> int:
    if name == "vocab":
        padded = -(-value // vocabulary) * vocabulary
        if padded % degree:
            raise BadInput(f"tensor_parallel {degree}: the vocabulary, {value:,} padded to {padded:,}, does not divide by it")
        return padded // degree
    if name in HEADS and name != "heads" and degree % value == 0:
        return 1
    if value % degree:
        raise BadInput(f"tensor_parallel {degree}: {name} {value:,} does not divide by it")
    return value // degree


def _shape(shape: tuple[int, ...], degree: int, vocabulary: int = VOCABULARY) -> tuple[int, ...]:
    return tuple(part(size, degree, SPLIT, vocabulary) for size in shape)


def _weight(weight: Weight, degree: int, vocabulary: int) -> Weight:
    """A rank's share of a weight; a tower whose heads do not divide stays whole."""
    try:
        return replace(weight, shape=_shape(weight.shape, degree, vocabulary))
    except BadInput:
        if weight.tower is None:
            raise
        return weight


def _cache(cache: Cache, degree: int) -> Cache:
    return replace(cache, shape=_shape(cache.shape, degree)) if cache.tower is None else cache


def _op(op: Op, tensors: dict[int, Tensor], weights: dict[int, Weight], degree: int, vocabulary: int) -> Op:
    """The op on its rank's share; its FLOPs shrink as its weights do, or as what it writes."""

    def own(some: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensors.get(id(t)) or view(t) for t in some)

    def view(t: Tensor) -> Tensor:
        return replace(t, shape=_shape(t.shape, degree, vocabulary), base=tensors.get(id(t.base), t.base))

    mine = tuple(weights.get(id(w), w) for w in op.weights)
    writes = own(op.writes)
    whole = sum(numel(w.shape) for w in op.weights) or sum(numel(t.shape) for t in op.writes)
    share = sum(numel(w.shape) for w in mine) if op.weights else sum(numel(t.shape) for t in writes)
    flops = op.flops * share // max(whole, 1)
    return replace(op, reads=own(op.reads), writes=writes, weights=mine, keeps=own(op.keeps), flops=flops)
