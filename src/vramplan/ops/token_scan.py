"""Mamba-1's scan token by token, composed of torch's own operators: what transformers runs where mamba-ssm is not installed.

Of each token a state [width, d_state] is kept in fp32 and again in the model's precision, beside the discretised A and B: 14 bytes for each
element of the states of all tokens. Source: transformers 5.23 `models/mamba/modeling_mamba.py` mamba_selective_scan without mambapy, the
same in Jamba; pytorch `derivatives.yaml` (exp, select).
"""

from __future__ import annotations

from ..dim import Dim, numel
from ..tape import Tape
from ..tensors import Tensor, Weight
from .pointwise import activation
from .recurrent import scan_state


def token_scan(
    t: Tape,
    mixed: Tensor,
    dt: Tensor,
    inputs: tuple[Tensor, Tensor],
    gate: Tensor,
    weights: tuple[Weight, Weight],
    *,
    state_dtype: str | None,
) -> Tensor:
    """Values, steps and gate [b, s, width], B and C [b, s, d_state]; `weights` A_log [width, d_state] and D [width] -> [b, s, width]."""
    (b, s, width), (a_log, d), (b_in, c_out) = mixed.shape, weights, inputs
    state = Dim(a_log.shape[1], "d_state")
    flops, size = scan_state(t, mixed.shape, (width, state), state_dtype), mixed.itemsize
    with t.module("scan", mixed, dt, gate):
        dt = t.op("dt.biased", (dt,), dt.shape, itemsize=size)
        dt = t.hold(t.op("dt.softplus", (dt,), dt.shape, itemsize=size, saves=(dt,), saves_out=True))
        every = (b, s, width, state)
        whole = numel(every) * 4
        log = t.op("A.log", (dt,), every, itemsize=4, weights=(a_log,), saves=(dt,), backward_workspace=whole)
        a = t.op("A", (log,), every, itemsize=4, saves_out=True)
        rate = t.op("B", (dt, b_in), every, itemsize=4, saves=(dt, b_in), backward_workspace=whole)
        x = t.op("x.float", (mixed,), mixed.shape, itemsize=4)
        added = t.hold(t.op("x.B", (rate, x), every, itemsize=4, saves=(rate, x), backward_workspace=whole))
        y = _states(t, a, added, c_out, mixed, flops)
        for named in (a, rate):
            t.hold(named)
        skipped = t.op("skipped", (mixed,), mixed.shape, itemsize=4, weights=(d,), saves=(mixed,), backward_workspace=x.nbytes)
        y = t.op("y", (y, skipped), mixed.shape, itemsize=4, passes=True)
        silu = activation(t, gate)
        y = t.op("gated", (y, silu), mixed.shape, itemsize=4, saves=(y, silu))
        return t.op("out", (y,), mixed.shape, itemsize=size)


def _states(t: Tape, a: Tensor, added: Tensor, c_out: Tensor, mixed: Tensor, flops: int) -> Tensor:
    """One state after the other, each kept twice; in backward each one's gradient lies in a tensor for all of them, zeros elsewhere."""
    if t.method is None:  # without gradients there is one at a time
        return t.op("states", (a, added, c_out), mixed.shape, itemsize=mixed.itemsize, flops=flops)
    kept = t.tensor("states", a.shape, 4), t.tensor("states.cast", a.shape, mixed.itemsize)
    saves = (a, c_out, *kept)
    return t.op(
        "states", (a, added, c_out), mixed.shape, itemsize=mixed.itemsize, flops=flops, saves=saves, extra=kept, backward_workspace=a.nbytes
    )
