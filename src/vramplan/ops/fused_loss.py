"""Losses that never hold all logits: linear head and cross-entropy in one, or in chunks. They take the head's place at the tape's end.

Each is one op on the final hidden states [b, s, hidden] and the head's weight [vocab, hidden]; rows below are b·s. Gradients made in the
forward pass are tensors that it keeps, and that the backward pass hands on as they are. Soft caps and scales of logits are within their
kernels; a bias of the head and statistics of one number per row are left out where nothing is said of them.
"""

from __future__ import annotations

from ..dim import Dim, numel
from ..errors import BadInput, Unknown
from ..tape import Tape
from ..tensors import Tensor, Weight


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


TOKENS, VOCABULARY = 4096, 32_768
"""Tokens and columns of TRL's tile of logits, whatever the model has: TRL 1.16 `kernels/chunked_logprob.py` TOKEN_CHUNK_SIZE,
`trainer/utils.py` _CHUNKED_LOGPROB_CHUNK_SIZE."""


def trl(t: Tape, scored: int | None = None) -> Tensor:
    """Log-probabilities of the last `scored` tokens of each sequence (all but its first) by TRL's fused head: hidden [b, s, hidden] -> [1].

    The states that predict them are gathered and kept, [rows, hidden]. A tile of the logits at a time is made, forward and backward;
    under autocast the states and the head are cast a tile at a time too, the next before the last is gone. The gradients of states and head
    are summed in fp32 and then brought to their dtypes.
    Source: TRL 1.16 `trainer/utils.py` add_fused_lm_head, `kernels/chunked_logprob.py` ChunkedLogProbFunction, where Triton is.
    """
    hidden, head = take_head(t)
    sequences, tokens, width = hidden.shape
    rows = Dim(int(sequences) * (int(tokens) - 1 if scored is None else scored), "scored tokens")
    size, stored = hidden.itemsize, 4 if head.dtype == "fp32" else t.itemsize
    compute = t.autocast or size
    states, matrix = numel((rows, width)), numel(head.shape) if head.trained else 0
    block = min(int(rows), TOKENS)
    tile = block * VOCABULARY * compute + (block * int(width) * compute if size != compute else 0)
    columns = [min(VOCABULARY, left) for left in range(int(head.shape[0]), 0, -VOCABULARY)]
    casts = [n * int(width) * compute if stored != compute else 0 for n in columns]
    summing = sum(casts[:2]) if len(casts) > 1 else casts[0] * (2 if rows > TOKENS else 1)
    bringing = casts[-1] + states * size * (size != 4) + matrix * stored * (stored != 4)
    with t.module("loss", hidden):
        outer = (numel((sequences, int(tokens) - 1)) - rows) * int(width) * size
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


TILE = 16384
"""Columns that one program of Unsloth's loss reduces (`_SPLIT_COLS`)."""
TILE_NBYTES = 256 << 20
"""Most bytes of a tile of logits in its pass for frozen heads (`_BWD_TILE_BYTES`)."""
SMALL_CARD = 24.5 * 2**30
"""GPUs of at most so much memory always take that pass; others from 4,096 rows on (`_flash_min_rows_auto`)."""


def unsloth(t: Tape, memory: int | None) -> Tensor:
    """Unsloth's fused cross-entropy over a frozen head, on a GPU of `memory` bytes (None: more than 24 GB): [b, s, hidden] -> [1].

    Logits are made in fp32, tile by tile of rows and vocabulary, beside an fp32 sum of the hidden states' gradient for a tile's rows; the
    whole gradient is in their dtype, and scaled into a tensor of its own by the backward pass. Where there are fewer rows or tokens than
    that pass wants, a chunk of rows has all its logits.
    Source: Unsloth Zoo 2026.10.9 `fused_losses/fused_linear.py` _ce_impl, _tiled_forward, _tiled_layout, fused_linear_rows.
    """
    hidden, weight = take_head(t)
    rows, width, vocab = _sizes(hidden, weight)
    if weight.trained:
        raise Unknown("engine 'unsloth': a head that trains is not estimated by this version")
    splits, labelled = -(-vocab // TILE), rows - int(hidden.shape[0])
    small = memory is not None and memory <= SMALL_CARD
    if splits > 2 and (small or labelled >= 4096):
        chunk = min(4096, labelled)
        columns = max(TILE_NBYTES // (4 * chunk), TILE)
        columns = min(TILE if small else columns // TILE * TILE, splits * TILE)
        workspace = 4 * (chunk * columns + chunk * width + 8 * splits * chunk)
    else:
        chunk = min(max(_below(labelled * width // vocab), min(max(_below(512 * 151936 // vocab), 512), 4096)), 4096, labelled)
        workspace = 4 * chunk * (-(-vocab // 8) * 8 + width)
    with t.module("loss", hidden):
        made = t.tensor("loss.grad_hidden", hidden.shape, hidden.itemsize)
        extra, statistics = (made,), 16 * labelled
        return t.op(
            "fused",
            (hidden,),
            (Dim(1),),
            itemsize=4,
            weights=(weight,),
            saves=extra,
            extra=extra,
            always=True,
            workspace=workspace + statistics,
        )


def _below(n: int) -> int:
    """The power of two at or below `n`, at least one."""
    return 1 << (max(n, 1).bit_length() - 1)
