"""Mamba-2's scan in chunks, composed of torch's own operators: what transformers runs where mamba-ssm is not installed.

Everything is in fp32. Of what is kept most is [b, s, heads, chunk]: the decay between the tokens of a chunk, the products of C and B there,
and both multiplied; and B, C and the values again for each einsum, since those want them in another order. Source: transformers 5.23
`models/mamba2/modeling_mamba2.py` mamba2_chunk_scan, the same in Falcon-H1, Granite 4 and Nemotron-H; pytorch
`aten/src/ATen/native/Linear.cpp` sumproduct_pair (einsum), `derivatives.yaml` (cumsum, masked_fill, exp).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..dim import Dim, numel
from ..tape import Tape
from ..tensors import Tensor, Weight
from .linear import lowered
from .recurrent import scan_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A Mamba-2 scan: `heads` of `head_dim` values with a state of `state` each; B and C are of `groups` of heads; a `chunk` of tokens; its
    weights, [heads] each.
    """

    heads: Dim
    head_dim: Dim
    groups: Dim
    state: Dim
    chunk: Dim
    dt_bias: Weight
    a_log: Weight
    d: Weight


def chunked_scan(t: Tape, mixed: Tensor, dt: Tensor, scan: Scan, *, state_dtype: str | None) -> Tensor:
    """Values, B and C side by side, `mixed` [b, s, heads·head_dim + 2·groups·state], and dt [b, s, heads] -> [b, s, heads·head_dim]."""
    b, s, _ = mixed.shape
    flops = scan_state(t, mixed.shape, (scan.heads, scan.head_dim, scan.state), state_dtype)
    chunks = Dim(-(-int(s) // int(scan.chunk)), "chunks")
    tokens, width = chunks * scan.chunk, scan.heads * scan.head_dim
    with t.module("scan", mixed, dt):
        dt = t.hold(_steps(t, dt, scan.dt_bias))
        x = _float(t, mixed, (b, s, width), "x")
        left, right = (_of_all_heads(t, mixed, scan, name) for name in ("B", "C"))
        skipped = t.hold(_by_head(t, _padded(t, x, tokens, "x"), None, "skipped", scan.d))
        values = _by_head(t, x, t.op("dt.float", (dt,), dt.shape, itemsize=4), "x.dt")
        rate = t.op("dt.rate", (dt,), dt.shape, itemsize=4)
        rate = t.op("decay", (rate,), dt.shape, itemsize=4, weights=(scan.a_log,), saves=(rate,))
        with t.module("", values, left, right):
            values, rate = _padded(t, values, tokens, "x.dt"), _padded(t, rate, tokens, "decay")
            left, right = _padded(t, left, tokens, "B"), _padded(t, right, tokens, "C")
        for named in (values, rate, left, right):
            t.hold(named)
        total = t.hold(t.op("decay.sum", (rate,), rate.shape, itemsize=4))
        within = t.hold(_within(t, values, left, right, rate, scan))
        passed = _states(t, values, left, _exp(t, total, "decay.rest"), (b, chunks, scan.heads, scan.head_dim * scan.state), flops)
        raw = t.hold(_product(t, (right, passed), values.shape, "between.raw"))
        y = t.op("sum", (within, t.hold(_by_head(t, raw, _exp(t, total, "decay.since"), "between"))), values.shape, itemsize=4, passes=True)
        y = t.op("reshaped", (y,), y.shape, itemsize=4, passes=True)
        y = t.op("y", (y, skipped), y.shape, itemsize=4, passes=True)
        return y if tokens == s else t.view(y, (b, s, width))


def _steps(t: Tape, dt: Tensor, bias: Weight) -> Tensor:
    """The step sizes: softplus of dt and its bias, clamped."""
    size, shape = dt.itemsize, dt.shape
    dt = t.op("dt.biased", (dt,), shape, itemsize=size, weights=(bias,))
    dt = t.op("dt.softplus", (dt,), shape, itemsize=size, saves=(dt,))
    return t.op("dt", (dt,), shape, itemsize=size, saves=(dt,))


def _of_all_heads(t: Tape, mixed: Tensor, scan: Scan, name: str) -> Tensor:
    """B or C in fp32, then that of each head's group: [b, s, heads·state]."""
    b, s, _ = mixed.shape
    narrow = _float(t, mixed, (b, s, scan.groups * scan.state), name)
    return t.op(f"{name}.repeated", (narrow,), (b, s, scan.heads * scan.state), itemsize=4)


def _float(t: Tape, mixed: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    part = t.view(mixed, shape)
    return part if mixed.itemsize == 4 else t.op(f"{name}.float", (part,), shape, itemsize=4)


def _padded(t: Tape, x: Tensor, tokens: Dim, name: str) -> Tensor:
    return t.op(f"{name}.padded", (x,), (x.shape[0], tokens, x.shape[2]), itemsize=4)


def _by_head(t: Tape, x: Tensor, factor: Tensor | None, name: str, weight: Weight | None = None) -> Tensor:
    """x times a factor, or a weight, of each head: its gradient is a sum over a tensor like x."""
    weights = (weight,) if weight else ()
    reads = (x,) if factor is None else (x, factor)
    return t.op(name, reads, x.shape, itemsize=4, weights=weights, saves=reads, backward_workspace=x.nbytes)


def _exp(t: Tape, x: Tensor, name: str) -> Tensor:
    return t.op(name, (x,), x.shape, itemsize=4, saves_out=True)


def _product(t: Tape, sides: tuple[Tensor, ...], shape: tuple[int, ...], name: str, flops: int = 0) -> Tensor:
    """An einsum of two: each side is copied into the order of a batched product, which keeps the copies."""
    names = [f"{name}.{number}" for number in range(len(sides))]
    copies = [t.op(n, (side,), side.shape, itemsize=side.itemsize, passes=True) for n, side in zip(names, sides, strict=True)]
    kept = tuple(lowered(t, copy, n) for n, copy in zip(names, copies, strict=True))
    return t.op(name, kept, shape, itemsize=t.autocast or 4, saves=kept, flops=flops)


def _within(t: Tape, values: Tensor, left: Tensor, right: Tensor, rate: Tensor, scan: Scan) -> Tensor:
    """What the tokens of a chunk give each other: C Bᵀ times the decay between them, times the values."""
    shape = (*rate.shape, scan.chunk)
    size = numel(shape) * 4
    sums = t.op("decay.sums", (rate,), shape, itemsize=4, workspace=2 * size, backward_workspace=3 * size)
    decay = _exp(t, sums, "decay.between")
    scores = _product(t, (right, left), shape, "scores")
    weights = t.op("weights", (scores, decay), shape, itemsize=4, saves=(scores, decay))
    for named in (decay, scores, weights):
        t.hold(named)
    weights = lowered(t, weights, "weights")
    copy = lowered(t, t.op("within.values", (values,), values.shape, itemsize=4, passes=True), "within.values")
    return t.op("within", (weights, copy), values.shape, itemsize=t.autocast or 4, saves=(weights, copy))


def _states(t: Tape, values: Tensor, left: Tensor, rest: Tensor, shape: tuple[int, ...], flops: int) -> Tensor:
    """Each chunk's state, and what is left at its start of all states before it; one more stands before the first chunk."""
    b, chunks, *state = shape
    decayed = t.hold(_by_head(t, left, rest, "B.decayed"))
    states = _product(t, (decayed, values), shape, "states", flops)
    joined = t.op("states.joined", (states,), (b, chunks + 1, *state), itemsize=states.itemsize)
    passed = t.hold(t.op("states.passed", (joined,), joined.shape, itemsize=states.itemsize, saves=(joined,)))
    return t.view(passed, shape)
