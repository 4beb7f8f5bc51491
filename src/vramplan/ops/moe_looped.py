"""A mixture of experts that are modules, run one after another: transformers before 5.0."""

from __future__ import annotations

from collections.abc import Sequence

from ..dim import Dim
from ..tape import Tape
from ..tensors import Tensor
from .linear import project
from .pointwise import activation, multiply

MOST = 8
"""Experts are walked in up to so many parts, so that the work does not grow with their number; each part's own are counted together."""


def looped(t: Tape, x: Tensor, weights: Tensor, *, ffn: int, n_experts: int, top_k: int, up: Sequence[str], down: str) -> Tensor:
    """x [b, s, hidden], the experts' weights [b, s, top_k] -> [b, s, hidden].

    The choice is written as ones and zeros (int64, [b·s, top_k, experts]). Each expert takes its tokens' rows, weights its result and adds
    it in place. Backward keeps, for each row, its position (two int64), the rows, what the linear layers and the activation keep, the
    result, its weight, and the weighted result, whose shape index_add wants. Source: transformers 4.57 `models/mixtral/modeling_mixtral.py`
    MixtralSparseMoeBlock; `aten::index`, `aten::index_add` (pytorch `derivatives.yaml`).
    """
    b, s, hidden = x.shape
    parts = max(n for n in range(1, MOST + 1) if int(n_experts) % n == 0)
    each = Dim(int(n_experts) // parts, "experts of a part")
    rows = Dim(-(-int(b) * int(s) * int(top_k) // parts), "rows of a part")
    results = []
    with t.module("", x, weights):
        chosen = t.hold(t.op("experts.chosen_one_hot", (weights,), (b * s, top_k, n_experts), itemsize=8))
        total = t.hold(t.op("experts.zeros", (), x.shape, itemsize=max(x.itemsize, weights.itemsize)))
        for part in range(parts):
            where = t.op("experts.where", (chosen,), (rows, Dim(2)), itemsize=8)
            taken = t.op("experts.rows", (x, where), (rows, hidden), itemsize=x.itemsize, saves=(where,))
            with t.module("", taken):
                inner = activation(t, _matrix(t, taken, up[0], ffn, each, top_k * (part == 0)))
                if len(up) == 2:
                    inner = multiply(t, inner, _matrix(t, taken, up[1], ffn, each, top_k * (part == 0)), "experts.gated")
                y = _matrix(t, inner, down, hidden, each, top_k * (part == 0))
            share = t.op("experts.share", (weights, where), (rows, Dim(1)), itemsize=weights.itemsize, saves=(where,))
            y = t.op("experts.weighted", (y, share), y.shape, itemsize=max(y.itemsize, share.itemsize), saves=(y, share))
            results.append(y)
        out = t.op("experts.added", (*results, total), x.shape, itemsize=total.itemsize, saves=tuple(results))
    return out if out.itemsize == x.itemsize else t.op("experts.cast", (out,), x.shape, itemsize=x.itemsize)


def _matrix(t: Tape, x: Tensor, name: str, out: int, copies: int, active: int) -> Tensor:
    """x Wᵀ with the matrices of `copies` experts together, each a linear layer of its own; a token's are all counted with the first."""
    weight = t.weight(name, (out, x.shape[-1]), "linear", copies=copies, active=active)
    return project(t, x, name.removesuffix(".weight"), out, (weight,))
