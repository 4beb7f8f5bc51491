"""Mixture of experts: the router and the routed experts' matrices."""

from __future__ import annotations

from collections.abc import Sequence

from ..tape import Dim, Tape, Tensor
from .linear import linear


def route(
    t: Tape, x: Tensor, name: str, n_experts: int, *, bias: bool = False, dtype: str | None = None, suffix: str = ".weight"
) -> Tensor:
    """Router scores: [..., hidden] -> [..., n_experts], and their softmax or sigmoid in fp32."""
    scores = linear(t, x, name, n_experts, bias=bias, kind="router", dtype=dtype, suffix=suffix)
    return t.op(f"{name}.probabilities", (scores,), scores.shape, itemsize=4, saves_out=True)


def experts(
    t: Tape,
    x: Tensor,
    probabilities: Tensor,
    *,
    ffn: int,
    n_experts: int,
    top_k: int,
    up: Sequence[str],
    down: str,
    bias: bool = False,
    transposed: bool = False,
    fused_up: bool = False,
) -> Tensor:
    """Each token through its `top_k` of `n_experts` MLPs: [b, s, hidden] -> [b, s, hidden].

    `up` names the matrices [ffn, hidden] before the activation (two where it is gated), `down` the one after it, as the checkpoint names
    them, `{e}` standing for the expert (`fused_up`: one matrix [2·ffn, hidden]; `transposed`: stored as [in, out]). Working set, in rows of
    b·s·top_k: the permuted input, gate and up, their product, the output; as in transformers' grouped experts (5.23
    `integrations/moe.py`) and vLLM's fused_moe (`fused_experts_impl`: three intermediate caches).
    """
    hidden = x.shape[-1]
    rows = x.shape[0] * x.shape[1] * Dim(top_k, "top_k")
    gates = 2 if fused_up else len(up)

    def matrix(name: str, out: int, width: int) -> None:
        shape = (width, out) if transposed else (out, width)
        t.weight(name, shape, "experts", copies=n_experts, active=top_k)
        if bias:
            t.weight(_bias(name), (out,), "experts", copies=n_experts, active=top_k)

    first = len(t.weights)
    for name in up:
        matrix(name, 2 * ffn if fused_up else ffn, hidden)
    middle = len(t.weights)
    matrix(down, hidden, ffn)
    ups, downs = tuple(t.weights[first:middle]), tuple(t.weights[middle:])

    flops = 2 * int(rows) * int(hidden) * int(ffn)
    permuted = t.op("experts.permute", (x, probabilities), (rows, hidden))
    raised = t.op("experts.up", (permuted,), (rows, gates * ffn), weights=ups, flops=gates * flops, saves=(permuted,))
    acted = t.op("experts.act", (raised,), (rows, ffn), saves=(raised,))
    lowered = t.op("experts.down", (acted,), (rows, hidden), weights=downs, flops=flops, saves=(acted,))
    return t.op("experts.combine", (lowered, probabilities), x.shape, saves=(lowered,))


def _bias(name: str) -> str:
    """The bias beside a weight, as checkpoints name it: `a.weight` -> `a.bias`, `gate_up_proj` -> `gate_up_proj_bias`."""
    return name.removesuffix(".weight") + ".bias" if name.endswith(".weight") else f"{name}_bias"
