"""The gated delta rule in chunks of 64 tokens, composed of torch's operators: what transformers runs without flash-linear-attention.

Everything is in fp32, and nearly everything is kept: four sets of queries and four of keys, three of values, five of the pairs within
chunks, and the state of every chunk. Source: transformers 5.23 `models/qwen3_next/modeling_qwen3_next.py` torch_chunk_gated_delta_rule,
the same as Qwen3.5's; pytorch `derivatives.yaml` (linalg_solve_triangular, select, exp), `torch/csrc/autograd/functions/tensor.cpp`
CopySlices.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..dim import Dim, numel
from ..tape import Tape
from ..tensors import Tensor
from .linear import lowered
from .recurrent import delta_state

CHUNK = 64
"""`chunk_size` of torch_chunk_gated_delta_rule, its default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The heads of a delta net, and their sizes: each key head serves `values / keys` value heads."""

    keys: Dim
    values: Dim
    key_dim: Dim
    value_dim: Dim


def chunked_delta_rule(t: Tape, mixed: Tensor, beta: Tensor, g: Tensor, heads: Heads, state_dtype: str | None) -> Tensor:
    """`mixed`, q, k and v side by side [b, s, 2·keys·dk + values·dv], and rates [b, s, values] -> [b, s, values·dv]."""
    b, s, _ = mixed.shape
    flops = delta_state(t, mixed.shape, (heads.values, heads.key_dim, heads.value_dim), state_dtype)
    chunks = Dim(-(-int(s) // CHUNK), "chunks")
    padded = chunks * CHUNK
    key_shape, value_shape = (b, padded, heads.values * heads.key_dim), (b, padded, heads.values * heads.value_dim)
    with t.module("delta_rule", mixed, beta, g):
        q, k, v, rate = _inputs(t, mixed, beta, heads)
        with t.module("", q, k, v):  # `query, key, value` name the padded ones when all three are there
            q, k = (t.op(f"{name}.padded", (x,), key_shape, itemsize=4) for name, x in (("query", q), ("key", k)))
            v = t.op("value.padded", (v,), value_shape, itemsize=4)
        rate, decay = (t.op(f"{name}.padded", (x,), (b, padded, heads.values), itemsize=4) for name, x in (("beta", rate), ("decay", g)))
        v_beta, k_beta = _scaled(t, v, rate, "value.beta"), _scaled(t, k, rate, "key.beta")
        total = t.op("decay.sum", (decay,), decay.shape, itemsize=4)
        between = _pairs(t, total)
        system, within = (_decayed_products(t, x, k, between, name) for name, x in (("key", k_beta), ("query", q)))
        decayed = _scaled(t, k_beta, _exp(t, total, "key.decay"), "key.beta_decayed")
        new, old = (_solved(t, system, x, name) for name, x in (("values", v_beta), ("keys", decayed)))
        q = _scaled(t, q, _exp(t, total, "query.decay"), "query.decayed")
        k = _scaled(t, k, _exp(t, total, "key.rest"), "key.decayed")
        y = _scan(t, (new, old, q, k, within), chunks, heads, flops)
        for named in (q, k, v, rate, decay, v_beta, k_beta, total, between, system, within, decayed, new, old):
            t.hold(named)
        y = t.op("reshaped", (y,), (b, s, value_shape[-1]), itemsize=4, passes=True)
        return t.op("out", (y,), y.shape, itemsize=mixed.itemsize)


def _inputs(t: Tape, mixed: Tensor, beta: Tensor, heads: Heads) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries and keys of all value heads, of length one, queries scaled; values; rates: all in fp32."""
    b, s, _ = mixed.shape
    wide = (b, s, heads.values * heads.key_dim)
    narrow = t.view(mixed, (b, s, heads.keys * heads.key_dim))
    grouped = int(heads.keys) != int(heads.values)
    q, k = (t.op(f"{name}.repeated", (narrow,), wide, itemsize=mixed.itemsize) if grouped else narrow for name in ("query", "key"))
    with t.module("", q, k):
        q, k = (t.op(f"{name}.float", (x,), wide, itemsize=4) for name, x in (("query", q), ("key", k)))
        v = t.op("value.float", (mixed,), (b, s, heads.values * heads.value_dim), itemsize=4)
        rate = t.op("beta.float", (beta,), beta.shape, itemsize=4)
    q, k = _unit(t, q, "query", heads), _unit(t, k, "key", heads)
    return t.op("query.scaled", (q,), wide, itemsize=4), k, v, rate


def _unit(t: Tape, x: Tensor, name: str, heads: Heads) -> Tensor:
    """x / |x| by head: the squares and, in backward, their gradient are tensors like x."""
    inverse = t.op(
        f"{name}.inverse_norm",
        (x,),
        (*x.shape[:-1], heads.values),
        itemsize=4,
        saves=(x,),
        saves_out=True,
        workspace=x.nbytes,
        backward_workspace=x.nbytes,
    )
    return _scaled(t, x, inverse, f"{name}.unit")


def _scaled(t: Tape, x: Tensor, factor: Tensor, name: str) -> Tensor:
    """x · factor, one factor for each head: its gradient is a sum over a tensor like x."""
    return t.op(name, (x, factor), x.shape, itemsize=4, saves=(x, factor), backward_workspace=x.nbytes)


def _exp(t: Tape, x: Tensor, name: str) -> Tensor:
    return t.op(name, (x,), x.shape, itemsize=4, saves_out=True)


def _pairs(t: Tape, total: Tensor) -> Tensor:
    """The decay between two tokens of a chunk, [b, s, heads, 64]: a difference, masked, its exponential, which backward keeps."""
    shape = (*total.shape, CHUNK)
    size = numel(shape) * 4
    masked = t.op("decay.pairs", (total,), shape, itemsize=4, workspace=size, backward_workspace=size)
    return _exp(t, masked, "decay.between")


def _decayed_products(t: Tape, x: Tensor, k: Tensor, between: Tensor, name: str) -> Tensor:
    """x kᵀ within each chunk, times the decay between its tokens: [b, s, heads, 64]."""
    x, k = lowered(t, x, f"{name}.left"), lowered(t, k, f"{name}.right")
    products = t.op(f"{name}.products", (x, k), between.shape, itemsize=t.autocast or 4, saves=(x, k))
    return t.op(f"{name}.pairs", (products, between), between.shape, itemsize=4, saves=(products, between))


def _solved(t: Tape, system: Tensor, x: Tensor, name: str) -> Tensor:
    """The solution of a triangular system for each chunk: like x. Backward keeps the system and the solution."""
    return t.op(f"{name}.solved", (system, x), x.shape, itemsize=4, saves=(system,), saves_out=True, backward_workspace=system.nbytes)


def _scan(t: Tape, reads: tuple[Tensor, ...], chunks: Dim, heads: Heads, flops: int) -> Tensor:
    """Chunk after chunk: each keeps its corrected values and the state after it, in fp32.

    Under autocast what enters a product is copied for it: the values and the state twice; the state itself is kept for its decay. In
    backward each chunk's gradients are added to those of all chunks, as tensors of full size, zeros elsewhere; two of the output's are
    there while one is cut out of the other.
    """
    new, *factors = reads
    size = t.autocast or 4
    state = (new.shape[0], chunks, heads.values, heads.key_dim * heads.value_dim)
    one = numel(state) // int(chunks) * 4
    times = 2 if t.autocast else 1
    if t.method is None:  # without gradients one chunk's are there at a time
        return t.op("scan", reads, new.shape, itemsize=4, flops=flops, workspace=3 * one)
    kept = [t.tensor(f"values.corrected{n or ''}", new.shape, size) for n in range(times)]
    kept += [t.tensor(f"states{n or ''}", state, size) for n in range(times)]
    if t.autocast:
        kept += [t.tensor("states.fp32", state, 4), *(t.tensor(f"{x.name}.autocast", x.shape, size) for x in factors)]
    saves = (*kept,) if t.autocast else (*factors, *kept)
    return t.op(
        "scan",
        reads,
        new.shape,
        itemsize=4,
        flops=flops,
        saves=saves,
        extra=(*kept,),
        workspace=2 * one,
        backward_workspace=new.nbytes + 3 * one,
    )
