"""Context parallelism: each rank has its share of every sequence's tokens, and takes the keys and values of all ranks in attention.

Ranks hold two pieces of a sequence each, one from either end, so that all have as much to do. Attention runs once for each rank's keys;
what comes of it is merged in fp32, forward and backward (Liu et al. 2023, arXiv:2310.01889; pytorch 2.13
`distributed/tensor/experimental/_context_parallel/_attention.py`, _templated_ring_attention, rotate method allgather). What it does not
know: the method alltoall, attention with masks.
"""

from __future__ import annotations

from ..dim import Dim, numel
from ..errors import BadInput
from ..tape import Tape
from ..tensors import Op, Tensor

SOURCE = "pytorch 2.13 torch/distributed/tensor/experimental/_context_parallel/_attention.py"
WIDE = 4
"""Bytes of an element of what is merged and summed (`convert_to_f32`)."""


def degree(asked: int, ranks: int, tensor: int = 1) -> int:
    """The degree that was `asked`, of `ranks` GPUs, `tensor` of which share each layer. Raises BadInput where it does not divide them."""
    left = ranks // tensor
    if left % asked:
        near = max(n for n in range(1, min(asked, left) + 1) if left % n == 0)
        what = "it" if tensor == 1 else f"the {left} that tensor_parallel {tensor} leaves"
        raise BadInput(f"gpu_count {ranks}: context_parallel {asked} does not divide {what}; the nearest is {near}")
    return asked


def tokens_of(length: int, degree: int) -> int:
    """A rank's tokens of a sequence. Raises BadInput where it does not fall into two pieces for each rank.

    >>> tokens_of(8192, 4)
    2048
    """
    if length % (2 * degree) and degree > 1:
        near = length // (2 * degree) * 2 * degree or 2 * degree
        raise BadInput(f"sequence_length {length:,}: context_parallel {degree} wants a multiple of {2 * degree}; the nearest is {near:,}")
    return length // degree


def context_parallel(tape: Tape, degree: int) -> Tape:
    """The tape of one rank's tokens, with what `degree` ranks take from each other in attention. Degree 1 is the tape itself.

    Each layer looks its positions' numbers up in those of the whole sequence, for every sequence (torchtitan 0.2.2
    `models/llama3/model/model.py`, apply_rotary_emb), and backward keeps them.
    """
    if degree == 1:
        return tape
    for table in tape.tables:
        if table.name == "freqs_cis":
            table.shape = (Dim(int(table.shape[0]) * degree, "positions"), *table.shape[1:])
    for index, op in enumerate(tape.ops):
        if op.name.endswith(".q.product"):
            _look_up(tape, index)
        elif op.name.endswith(".attention"):
            op.workspace, op.backward_workspace = _forward(op, degree), op.backward_workspace + _backward(op, degree)
    return tape


def ring_attention(tape: Tape, degree: int) -> Tape:
    """The tape of one rank's tokens, where keys and values go round `degree` ranks, as TransformerEngine's attention has them.

    Forward: keys and values of each rank as they pass, and an output for each of them, until these are put together. Backward: two buffers
    for keys, values and their gradients, of which one ends as the gradient, and a part of the queries' gradient. The scores' log-sum-exp of
    each step is left out. Source: TransformerEngine 2.9 `attention/dot_product_attention/context_parallel.py`, AttnFuncWithCPAndKVP2P.
    """
    for op in tape.ops if degree > 1 else ():
        if op.name.endswith(".attention"):
            query, _, both = _sizes(op)
            op.workspace += degree * (both + op.writes[0].nbytes)
            op.backward_workspace += 3 * both + query
    return tape


def _look_up(tape: Tape, index: int) -> None:
    """Queries and keys are rotated by the same numbers."""
    op, head_dim = tape.ops[index], next(table.shape[-1] for table in tape.tables if table.name == "freqs_cis")
    last, keys = next((n, o) for n, o in enumerate(tape.ops[index:], index) if o.name.endswith(".k.product"))
    table = Tensor(f"{op.name}.freqs_cis", (*op.writes[0].shape[:2], head_dim), WIDE, index, last, op.repeats)
    table.saved = op.repeats * op.writes[0].grad
    tape.tensors.append(table)
    op.writes, op.keeps, keys.keeps = (*op.writes, table), (*op.keeps, table), (*keys.keeps, table)


def _forward(op: Op, degree: int) -> int:
    """Beside the output: all keys and values; the sum so far, another rank's part, their weighted difference and the new sum in fp32."""
    _, _, both = _sizes(op)
    return degree * both + 4 * numel(op.writes[0].shape) * WIDE


def _backward(op: Op, degree: int) -> int:
    """Beside the gradients: all keys and values; the sums in fp32, those of keys and values also as they go to the next rank and come from
    the last; and the gradients of the part before.
    """
    query, sums, both = _sizes(op)
    return degree * both + numel(op.reads[0].shape) * WIDE + 3 * sums + query + both // 2


def _sizes(op: Op) -> tuple[int, int, int]:
    """Bytes of the queries; of keys and values in fp32 and as they are."""
    query, key, value = op.reads
    return query.nbytes, (numel(key.shape) + numel(value.shape)) * WIDE, key.nbytes + value.nbytes
