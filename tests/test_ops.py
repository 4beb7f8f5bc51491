"""Ops against hand numbers: shapes, FLOPs, what backward keeps. b = 2 sequences of s = 5 tokens, bf16 unless said."""

from __future__ import annotations

import pytest

from vramplan.dim import Dim
from vramplan.kernels import Kernels
from vramplan.ops import (
    attention,
    causal_conv,
    embed,
    experts,
    gated,
    gated_delta_rule,
    head,
    layer_norm,
    linear,
    rms_norm,
    rope,
    route,
    selective_scan,
)
from vramplan.tape import Tape
from vramplan.tensors import Tensor

B, S, H, F, V = 2, 5, 8, 12, 20
ROWS = B * S


def start(kernels: Kernels | None = None, past: int = 0) -> tuple[Tape, Tensor]:
    t = Tape(Dim(B), Dim(S), past=past, kernels=kernels or Kernels())
    return t, t.tensor("x", (Dim(B), Dim(S), Dim(H)))


def test_linear() -> None:
    """y = x Wᵀ + b: 2·rows·in·out FLOPs; backward keeps x."""
    t, x = start()
    y = linear(t, x, "up", Dim(F), bias=True)
    assert [tuple(w.shape) for w in t.weights] == [(F, H), (F,)]
    assert (tuple(y.shape), t.flops, t.saved_bytes) == ((B, S, F), 2 * ROWS * H * F, ROWS * H * 2)


def test_embedding_keeps_its_ids() -> None:
    t, _ = start()
    x, weight = embed(t, "embed_tokens", Dim(V), Dim(H))
    assert (tuple(x.shape), tuple(weight.shape), t.saved_bytes) == ((B, S, H), (V, H), ROWS * 8)


@pytest.mark.parametrize(
    ("logits", "rows", "nbytes", "flops"),
    [("last", 1, B * V * 2, 2 * B * H * V), ("all", S, ROWS * V * 2, 2 * ROWS * H * V), ("all-fp32", S, ROWS * V * 4, 2 * ROWS * H * V)],
)
def test_head_makes_the_logits_that_the_engine_asks_for(logits: str, rows: int, nbytes: int, flops: int) -> None:
    t, x = start(Kernels(logits=logits))  # type: ignore[arg-type]
    y = head(t, x, "lm_head", Dim(V))
    assert (tuple(y.shape), y.nbytes, t.flops, t.parameters) == ((B, rows, V), nbytes, flops, V * H)


def test_a_tied_head_has_no_weight_of_its_own() -> None:
    t, _ = start()
    x, embedding = embed(t, "embed_tokens", Dim(V), Dim(H))
    head(t, x, "lm_head", Dim(V), tied=embedding)
    assert embedding.tied
    assert (t.parameters, t.ops[-1].weights) == (V * H, (embedding,))


@pytest.mark.parametrize(
    ("mlp", "kept"),
    [("eager", ROWS * (H + 3 * F) * 2), ("merged", ROWS * (H + 2 * F) * 2)],
)
def test_gated_mlp(mlp: str, kept: int) -> None:
    """eager keeps x, the gate, its activation and up; merged keeps x and gate-and-up as one tensor."""
    t, x = start(Kernels(mlp=mlp))  # type: ignore[arg-type]
    y = gated(t, x, "gate", "up", Dim(F))
    assert [tuple(w.shape) for w in t.weights] == [(F, H), (F, H)]
    assert (tuple(y.shape), t.flops, t.saved_bytes) == ((B, S, F), 2 * 2 * ROWS * H * F, kept)


@pytest.mark.parametrize(
    ("norm", "kept"),
    [("upcast", ROWS * (4 * H + 4 + 2 * H)), ("fused", ROWS * (2 * H + 4))],
)
def test_rms_norm(norm: str, kept: int) -> None:
    """upcast keeps x in fp32, the reciprocal root in fp32 and the normed x; fused keeps x and the root."""
    t, x = start(Kernels(norm=norm))  # type: ignore[arg-type]
    rms_norm(t, x, "norm")
    assert (t.parameters, t.saved_bytes) == (H, kept)


def test_layer_norm() -> None:
    """Keeps x, mean and reciprocal deviation (fp32)."""
    t, x = start()
    layer_norm(t, x, "norm")
    assert (t.parameters, t.saved_bytes) == (2 * H, ROWS * (2 * H + 8))


def test_rotary_positions_keep_only_the_shared_tables() -> None:
    t, x = start()
    rope(t, x, "q", head_dim=4)
    assert t.saved_bytes == 2 * (1 * S * 4 * 2)
    t, x = start(Kernels(rope="inplace"))
    assert rope(t, x, "q", head_dim=4) is x
    assert t.ops == []


def attend(kernels: Kernels, past: int = 0, window: int | None = None) -> Tape:
    """4 heads over 2 kv heads of 3."""
    t, _ = start(kernels, past)
    q = t.tensor("q", (Dim(B), Dim(S), Dim(4) * Dim(3)))
    k, v = (t.tensor(name, (Dim(B), Dim(S), Dim(2) * Dim(3))) for name in "kv")
    out = attention(t, q, k, v, heads=Dim(4), kv_heads=Dim(2), window=window)
    assert tuple(out.shape) == (B, S, 12)
    return t


@pytest.mark.parametrize(
    ("past", "window", "keys"),
    [(0, None, 5), (7, None, 12), (7, 4, 4), (0, 100, 5)],
)
def test_flash_attention(past: int, window: int | None, keys: int) -> None:
    """2·b·heads·s·keys·(d + dv) FLOPs; keeps q, k, v, the output and the log-sum-exp, however many keys."""
    t = attend(Kernels(attention="flash"), past, window)
    assert t.flops == 2 * B * 4 * S * keys * (3 + 3)
    assert t.saved_bytes == ROWS * (12 + 6 + 6 + 12) * 2 + B * 4 * S * 4


def test_eager_attention() -> None:
    """Keeps q, the repeated k and v, the softmax in fp32 and its cast."""
    t = attend(Kernels(attention="eager"))
    scores = B * 4 * S * S
    assert t.flops == 2 * scores * (3 + 3)
    assert t.saved_bytes == ROWS * (12 + 12 + 12) * 2 + scores * (4 + 2)


def test_attention_over_written_scores_makes_one_tensor_of_them() -> None:
    t = attend(Kernels(attention="inplace", frames="freed"), past=7)
    assert [x.nbytes for x in t.tensors if "scores" in x.name] == [B * 4 * S * 12 * 4]


PAIRS = 2 * ROWS
SERVED = PAIRS * (H + 2 * F + F + H) * 2
"""Permuted rows, gate and up, their product, the output, in bf16."""
GROUPED = SERVED + PAIRS * F * 2 + 3 * PAIRS * 8 + PAIRS * 2 + PAIRS * 8 + 6 * 4
"""And the activated gate, three orders of the rows (int64), the weights, the choice (int64), the experts' offsets (int32)."""


@pytest.mark.parametrize("fused_up", [False, True])
@pytest.mark.parametrize(("frames", "kept"), [("freed", SERVED), ("held", GROUPED)])
def test_experts(fused_up: bool, frames: str, kept: int) -> None:
    """6 gated experts of [F, H], 2 of them for each token: 2·rows·k·H·F FLOPs for each of the three matrices."""
    t, x = start(Kernels(frames=frames))  # type: ignore[arg-type]
    probabilities = route(t, x, "gate", Dim(6))
    assert (t.parameters, t.flops, probabilities.nbytes) == (6 * H, 2 * ROWS * H * 6, ROWS * 6 * 4)
    up = ["{e}.gate_up"] if fused_up else ["{e}.gate", "{e}.up"]
    router = (t.parameters, t.flops, t.saved_bytes)
    y = experts(t, x, probabilities, ffn=Dim(F), n_experts=6, top_k=2, up=up, down="{e}.down", fused_up=fused_up)
    assert tuple(y.shape) == (B, S, H)
    assert t.parameters - router[0] == 6 * 3 * H * F
    assert t.active_parameters - router[0] == 2 * 3 * H * F
    assert t.flops - router[1] == 3 * 2 * PAIRS * H * F
    assert t.saved_bytes - router[2] == kept


def test_recurrent_layers_note_a_state_per_sequence() -> None:
    """A convolution of 4 keeps 3 columns; the scan's state [heads, d, n] costs 6, the delta rule's [heads, dk, dv] 8 FLOPs a token."""
    t, x = start()
    y = causal_conv(t, x, "conv1d", 4, bias=True, state_dtype="bf16")
    y = selective_scan(t, (y,), y.shape, (Dim(2), Dim(4), Dim(16)), state_dtype="fp32")
    gated_delta_rule(t, (y,), y.shape, (Dim(2), Dim(3), Dim(5)), state_dtype="fp32")
    assert t.parameters == H * 4 + H
    assert [(c.name, c.per, c.elements(99)) for c in t.caches] == [
        ("conv state", "sequence", H * 3),
        ("ssm state", "sequence", 2 * 4 * 16),
        ("delta state", "sequence", 2 * 3 * 5),
    ]
    assert t.flops == ROWS * (2 * 4 * H + 6 * 2 * 4 * 16 + 8 * 2 * 3 * 5)


def test_bytes_moved_are_what_ops_read_and_write() -> None:
    t, x = start()
    linear(t, x, "up", Dim(F))
    assert t.moved == ROWS * (H + F) * 2
