"""Losses that never hold all logits: linear head and cross-entropy in one, or in chunks. They take the head's place at the tape's end.

Each is one op on the final hidden states [b, s, hidden] and the head's weight [vocab, hidden]; rows below are b·s. Gradients made in the
forward pass are tensors that it keeps, and that the backward pass hands on as they are. Soft caps and scales of logits are within their
kernels; a bias of the head and statistics of one number per row are left out where nothing is said of them.
"""

from __future__ import annotations

from ..errors import BadInput
from ..tape import Dim, Tape, Tensor, Weight, numel


def take_head(t: Tape) -> tuple[Tensor, Weight]:
    """Take the head back from the tape, with what followed it (soft caps, scales, copies): its input and its weight.

    Raises BadInput where an adapter stands beside the head: these losses do not run it.
    """
    at = max(i for i, op in enumerate(t.ops) if any(weight.kind == "head" or weight.tied for weight in op.weights))
    if any(weight.part == "adapters" for op in t.ops[at:] for weight in op.weights):
        raise BadInput("loss: a fused or chunked one takes the head's own weight; choose loss plain, or no adapter on the head")
    weight, hidden = t.ops[at].weights[0], t.ops[at].reads[0]
    while at and t.ops[at - 1].name.endswith(".autocast") and t.ops[at - 1].writes[0] is hidden:
        at, hidden = at - 1, t.ops[at - 1].reads[0]
    gone = [tensor for op in t.ops[at:] for tensor in op.keeps]
    del t.ops[at:]
    t.tensors = [tensor for tensor in t.tensors if tensor.born < at]
    for tensor in gone:
        tensor.saved = max((min(tensor.repeats, op.repeats) for op in t.ops if tensor in op.keeps), default=0)
    return hidden, weight


def liger(t: Tape) -> Tensor:
    """Liger's fused linear cross-entropy: [b, s, hidden] -> [1].

    Logits are made for a chunk of rows at a time, in one buffer of the hidden states' dtype, and turned into their gradient in place; so
    come the gradients of the hidden states and of the head's weight, both whole, in the forward pass. With inc = ⌈vocab / hidden⌉ a chunk
    has the power of two at or above ⌈rows / inc⌉. Under autocast the weight is cast for each product: the copy for the gradients is
    cached, that of its transpose, for the logits, is not.
    Source: Liger 0.8.5 `ops/fused_linear_cross_entropy.py` (CUDA, compute capability 8 or later; `accum_dtype` None).
    """
    hidden, weight = take_head(t)
    rows, width, vocab = _sizes(hidden, weight)
    chunk = min(power_of_two(-(-rows // -(-vocab // width))), rows)
    size = t.autocast or hidden.itemsize
    casts = min(-(-rows // chunk), 2) * vocab * width * size + chunk * width * size if size < hidden.itemsize else 0
    return _one_op(t, hidden, weight, workspace=chunk * vocab * size + casts + 4 * rows)


def cut(t: Tape) -> Tensor:
    """Apple's cut cross-entropy: [b, s, hidden] -> [1]. Logits live in the GPU's shared memory only.

    The hidden states, the log-sum-exp [rows] and the mean logit of each token [vocab] are kept; backward makes both gradients whole, in the
    dtypes of their tensors. Under autocast the hidden states and the weight are cast and kept so, and their gradients are made in the
    lower precision first. Source: Wijmans et al. 2024, arXiv:2411.09009; cut-cross-entropy 25.1.1 `cce.py`, `cce_backward.py`.
    """
    hidden, weight = take_head(t)
    rows, width, vocab = _sizes(hidden, weight)
    made, low = [], 0
    with t.module("loss", hidden):
        if t.autocast and t.autocast < hidden.itemsize:
            low = t.autocast * (rows + vocab * weight.trained) * width
            made = [t.tensor("loss.weight", weight.shape, t.autocast)]
            hidden = t.op("lowered", (hidden,), hidden.shape, itemsize=t.autocast)
        made += [t.tensor("loss.lse", (Dim(rows, "rows"),), 4), t.tensor("loss.mean_logits", (Dim(vocab, "vocab"),), 4)]
        saves = (hidden, *made)
        return t.op(
            "cut", (hidden,), (Dim(1),), itemsize=4, weights=(weight,), saves=saves, extra=tuple(made), always=True, backward_workspace=low
        )


def trl(t: Tape) -> Tensor:
    """TRL's cross-entropy without logits: [b, s, hidden] -> [1].

    The rows that have a label (all but each sequence's last) are copied and kept. Tiles of 4,096 rows × 32,768 tokens of the vocabulary are
    computed in one buffer, forward and again backward, which sums both gradients in fp32 before it casts them.
    Source: TRL 1.16 `kernels/chunked_logprob.py` ChunkedLogProbFunction, `trainer/utils.py` add_fused_lm_head.
    """
    hidden, weight = take_head(t)
    _, width, vocab = _sizes(hidden, weight)
    rows, size = int(hidden.shape[0]) * (int(hidden.shape[1]) - 1), t.autocast or hidden.itemsize
    buffer = min(rows, 4096) * 32768 * size
    low = width * size if size < hidden.itemsize else 0  # a tile's casts live until the next tile has its own
    casts, weights = low * (min(rows, 4096) + min(max(rows - 4096, 0), 4096)), (min(vocab, 32768), min(max(vocab - 32768, 0), 32768))
    sums = 4 * rows * width * (hidden.itemsize < 4) + 4 * vocab * width * (weight.trained and t.itemsize < 4)
    with t.module("loss", hidden):
        shape, full = (Dim(rows, "labelled rows"), Dim(width, "hidden")), rows * width * hidden.itemsize
        labelled = t.hold(t.op("labelled", (hidden,), shape, itemsize=hidden.itemsize, backward_workspace=full))
        lse = t.tensor("loss.lse", (Dim(rows, "rows"), Dim(2)), 4)
        return t.op(
            "tiled",
            (labelled,),
            (Dim(1),),
            itemsize=4,
            weights=(weight,),
            saves=(labelled, lse),
            extra=(lse,),
            always=True,
            workspace=buffer + casts + low * weights[0] + 7 * 4 * rows,
            backward_workspace=buffer + casts + low * sum(weights) + sums,
        )


def power_of_two(n: int) -> int:
    """The power of two at or above `n`.

    >>> power_of_two(17), power_of_two(32)
    (32, 32)
    """
    return 1 << (n - 1).bit_length()


def _sizes(hidden: Tensor, weight: Weight) -> tuple[int, int, int]:
    """Rows, hidden width and vocabulary."""
    return numel(hidden.shape[:-1]), int(hidden.shape[-1]), int(weight.shape[0])


def _one_op(t: Tape, hidden: Tensor, weight: Weight, *, workspace: int) -> Tensor:
    """An op that makes the gradients of `hidden` and, where it trains, of `weight` in the forward pass: backward hands them on."""
    with t.module("loss", hidden):
        made = [t.tensor("loss.grad_hidden", hidden.shape, hidden.itemsize)]
        if weight.trained:
            made.append(t.tensor("loss.grad_weight", weight.shape, t.itemsize))
        gradients = tuple(made)
        return t.op(
            "fused",
            (hidden,),
            (Dim(1),),
            itemsize=4,
            weights=(weight,),
            saves=gradients,
            extra=gradients,
            always=True,
            workspace=workspace,
            overwrites="kept",
        )
