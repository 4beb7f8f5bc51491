"""Layers that keep a state of fixed size per sequence: causal convolutions, selective scans (Mamba), gated delta rules."""

from __future__ import annotations

from ..dim import numel
from ..tape import Tape
from ..tensors import Tensor


def causal_conv(t: Tape, x: Tensor, name: str, kernel: int, *, bias: bool, state_dtype: str | None = None, state: bool = True) -> Tensor:
    """Depthwise causal convolution: [b, s, width] -> [b, s, width], weight [width, 1, kernel], state [width, kernel] per sequence.

    transformers' caches keep `kernel` columns (5.23 `cache_utils.py`), vLLM and llama.cpp `kernel − 1`: the engine decides, the tape
    notes `kernel − 1`, what the next step needs. Backward keeps x whether the weight trains or not (`aten::convolution`, pytorch
    `derivatives.yaml`: one formula for all gradients). Source: `causal_conv1d_fn`, Gu & Dao 2023 (arXiv:2312.00752) section 3.4.
    """
    width = x.shape[-1]
    weights = [t.weight(f"{name}.weight", (width, 1, kernel), "conv")]
    if bias:
        weights.append(t.weight(f"{name}.bias", (width,), "norm"))
    if state:
        t.cache("conv state", "state", (width, kernel - 1), per="sequence", dtype=state_dtype)
    flops = 2 * numel(x.shape) * int(kernel)
    if t.autocast:  # it goes to the weight's precision, and from there to autocast's
        x = t.op(f"{name}.input.autocast", (x,), x.shape, itemsize=t.autocast)
    return t.op(name, (x,), x.shape, itemsize=x.itemsize, weights=tuple(weights), flops=flops, saves=(x,), always=True)


def selective_scan(
    t: Tape, reads: tuple[Tensor, ...], shape: tuple[int, ...], state: tuple[int, ...], *, state_dtype: str | None, name: str = "scan"
) -> Tensor:
    """h ← Ā h + B̄ x, y = C h in one kernel: writes [b, s, width]; the state as in `scan_state`.

    Backward keeps what it reads, as mamba-ssm's. Composed of torch's operators, Mamba-2's is `chunked_scan`.
    """
    return t.op(name, reads, shape, flops=scan_state(t, shape, state, state_dtype), saves=reads)


def scan_state(t: Tape, shape: tuple[int, ...], state: tuple[int, ...], dtype: str | None) -> int:
    """Note the state `[heads, head_dim, d_state]` (Mamba-1: `[width, d_state]`) of a scan that writes `shape` [b, s, width]; its FLOPs.

    About 6 per state element and token (decay, input, output: Dao & Gu 2024, arXiv:2405.21060, section 6).
    """
    t.cache("ssm state", "state", state, per="sequence", dtype=dtype)
    return 6 * numel(state) * int(shape[0]) * int(shape[1])


def gated_delta_rule(
    t: Tape, reads: tuple[Tensor, ...], shape: tuple[int, ...], state: tuple[int, ...], *, state_dtype: str | None
) -> Tensor:
    """S ← S(α − β k kᵀ) + β v kᵀ, y = S q in one kernel: writes [b, s, heads·dv]; the state `[heads, dk, dv]` per sequence.

    Backward keeps what it reads, and computes the rest again, as flash-linear-attention's. Composed of torch's operators it is
    `chunked_delta_rule`.
    """
    return t.op("delta_rule", reads, shape, flops=delta_state(t, shape, state, state_dtype), saves=reads)


def delta_state(t: Tape, shape: tuple[int, ...], state: tuple[int, ...], dtype: str | None) -> int:
    """Note the state `[heads, dk, dv]` of a delta rule that writes `shape` [b, s, width]; its FLOPs, about 8 per state element and token.

    Source: Yang et al. 2024 (arXiv:2412.06464), equation 10.
    """
    t.cache("delta state", "state", state, per="sequence", dtype=dtype)
    return 8 * numel(state) * int(shape[0]) * int(shape[1])
