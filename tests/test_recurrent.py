"""Delta rules and scans composed of torch's operators: what each keeps, by hand, and how it differs from one kernel.

Whole steps of such models are judged by traced ones (`tests/test_traced.py`); what is counted here are the tensors of one layer.
"""

from __future__ import annotations

import pytest

from vramplan.dim import Dim
from vramplan.kernels import Kernels
from vramplan.methods import Full
from vramplan.ops.delta_rule import CHUNK, Heads, chunked_delta_rule
from vramplan.ops.mamba_scan import Scan, chunked_scan
from vramplan.ops.token_scan import token_scan
from vramplan.tape import Tape
from vramplan.tensors import Tensor

B, S = 2, 130
PADDED = 192
"""Tokens in whole chunks of 64."""


def start(width: int, *, trains: bool = True) -> tuple[Tape, Tensor]:
    """A tape, and an input of `width` that needs a gradient."""
    t = Tape(Dim(B, "batch"), Dim(S, "tokens"))
    t.method = Full() if trains else None
    x = t.tensor("x", (Dim(B), Dim(S), Dim(width)))
    x.grad = trains
    return t, x


def kept(t: Tape, *but: Tensor) -> int:
    """Bytes kept for backward, inputs left out."""
    return t.saved_bytes - sum(x.nbytes for x in but if x.saved)


def delta(t: Tape, mixed: Tensor, heads: Heads) -> Tensor:
    rates = t.tensor("beta", (Dim(B), Dim(S), heads.values))
    g = t.tensor("g", rates.shape, itemsize=4)
    rates.grad = g.grad = mixed.grad
    return chunked_delta_rule(t, mixed, rates, g, heads, state_dtype="fp32")


def test_a_delta_rule_keeps_queries_keys_values_pairs_and_states_in_fp32() -> None:
    """Queries and keys before they are padded, six sets of them after; three of values; five of pairs; a state for each chunk; six rates:
    the two norms before padding, beta and three exponentials of sums of decays after it.
    """
    heads = Heads(keys=Dim(2), values=Dim(4), key_dim=Dim(8), value_dim=Dim(16))
    t, mixed = start(2 * 2 * 8 + 4 * 16)
    y = delta(t, mixed, heads)
    row, tokens = 4 * 4, B * PADDED
    queries, values, pairs = row * 8, row * 16, row * CHUNK
    states = B * 3 * row * 8 * 16
    assert tuple(y.shape) == (B, S, 64)
    before = 2 * B * S * (queries + row)
    assert kept(t) == before + tokens * (6 * queries + 3 * values + 5 * pairs + 4 * row) + states


def test_without_gradients_one_chunk_is_there_at_a_time() -> None:
    heads = Heads(keys=Dim(2), values=Dim(4), key_dim=Dim(8), value_dim=Dim(16))
    t, mixed = start(96, trains=False)
    delta(t, mixed, heads)
    assert not any("states" in x.name for x in t.tensors)


def test_a_scan_in_chunks_keeps_three_squares() -> None:
    """[b, s, heads, chunk] three times; B or C of all heads five times; the values twice before padding, four times after."""
    t, mixed = start(4 * 8 + 2 * 2 * 16)
    dt = t.tensor("dt", (Dim(B), Dim(S), Dim(4)))
    dt.grad = True
    weights = {name: t.weight(name, (Dim(4),), "norm") for name in ("dt_bias", "a_log", "d")}
    scan = Scan(heads=Dim(4), head_dim=Dim(8), groups=Dim(2), state=Dim(16), chunk=Dim(64), **weights)
    y = chunked_scan(t, mixed, dt, scan, state_dtype="fp32")
    row, tokens = 4 * 4, B * PADDED
    states = B * row * 8 * 16
    steps = B * S * 4 * (2 + 2 + 4 + 4)
    assert tuple(y.shape) == (B, S, 32)
    assert kept(t) == B * S * row * 8 + tokens * row * (4 * 8 + 5 * 16 + 3 * 64 + 2) + (4 + 3) * states + steps


def test_a_scan_by_tokens_keeps_fourteen_bytes_for_each_element_of_each_state() -> None:
    t, mixed = start(32)
    dt, gate = (t.tensor(name, mixed.shape) for name in ("dt", "gate"))
    b_in, c_out = (t.tensor(name, (Dim(B), Dim(S), Dim(16))) for name in ("B", "C"))
    for x in (dt, gate, b_in, c_out):
        x.grad = True
    a_log, d = t.weight("A_log", (Dim(32), Dim(16)), "conv"), t.weight("D", (Dim(32),), "norm")
    token_scan(t, mixed, dt, (b_in, c_out), gate, (a_log, d), state_dtype="fp32")
    values = B * S * 32
    assert kept(t, mixed, b_in, c_out, gate) == values * 16 * 14 + values * (2 + 2 + 4 + 4 + 2)


@pytest.mark.parametrize(("recurrence", "times"), [("fused", 1), ("composed", 10)])
def test_one_kernel_keeps_what_it_reads(recurrence: str, times: int) -> None:
    from vramplan.families import walk

    config = {"model_type": "qwen3_next", "hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 100, "layer_types": ["linear_attention"]}
    t = Tape(Dim(1), Dim(128), kernels=Kernels(logits="all", recurrence=recurrence))  # type: ignore[arg-type]
    t.method = Full()
    walk(t, config)
    rule = sum(x.nbytes for x in t.tensors if "delta_rule" in x.name and x.saved)
    mixed = 128 * (2 * 16 * 128 + 32 * 128) * 2
    assert (rule > times * mixed) is (recurrence == "composed")
