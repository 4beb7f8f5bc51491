"""Element-wise ops and rotary embeddings."""

from __future__ import annotations

from ..tape import Tape, Tensor
from .linear import linear


def add(t: Tape, a: Tensor, b: Tensor, name: str = "residual") -> Tensor:
    """a + b, same shapes. Backward keeps nothing."""
    return t.op(name, (a, b), a.shape, itemsize=max(a.itemsize, b.itemsize), passes=a.itemsize == b.itemsize)


def multiply(t: Tape, a: Tensor, b: Tensor, name: str = "multiply") -> Tensor:
    """a · b, same shapes. Backward keeps both."""
    return t.op(name, (a, b), a.shape, itemsize=max(a.itemsize, b.itemsize), saves=(a, b))


def dropout(t: Tape, x: Tensor, share: float, name: str = "dropout") -> Tensor:
    """x with a `share` of its elements zeroed, in training only: same shape. Backward keeps a mask of one byte per element.

    Source: `aten::native_dropout`, pytorch `derivatives.yaml`.
    """
    if not share or t.method is None:
        return x
    mask = t.tensor(f"{name}.mask", x.shape, itemsize=1)
    return t.op(name, (x,), x.shape, itemsize=x.itemsize, extra=(mask,), saves=(mask,))


def activation(t: Tape, x: Tensor, name: str = "act_fn") -> Tensor:
    """gelu, silu, relu², tanh …: same shape. Backward keeps x (relu its output, of the same size)."""
    return t.op(name, (x,), x.shape, itemsize=x.itemsize, saves=(x,))


def gated(t: Tape, x: Tensor, gate: str, up: str, ffn: int, *, bias: bool = False) -> Tensor:
    """act(x Wgᵀ) · (x Wuᵀ): [..., hidden] -> [..., ffn].

    `eager` (transformers' LlamaMLP): gate, act(gate) and up are tensors of their own, all kept for backward. `merged` (vLLM's
    MergedColumnParallelLinear and SiluAndMul): one tensor [..., 2·ffn] and the product; the checkpoint's two weights stay two.
    """
    if t.kernels.mlp == "eager":
        gated_x = activation(t, linear(t, x, gate, ffn, bias=bias))
        return multiply(t, gated_x, linear(t, x, up, ffn, bias=bias), "gated")
    weights = tuple(t.weight(f"{name}.weight", (ffn, x.shape[-1]), "linear") for name in (gate, up))
    if bias:
        weights += tuple(t.weight(f"{name}.bias", (ffn,), "linear") for name in (gate, up))
    rows = x.nbytes // x.itemsize
    both = t.op("gate_up", (x,), (*x.shape[:-1], 2 * ffn), weights=weights, flops=4 * rows * int(ffn), saves=(x,))
    return t.op("act_and_mul", (both,), (*x.shape[:-1], ffn), saves=(both,))


def rope(t: Tape, x: Tensor, name: str, head_dim: int | None = None) -> Tensor:
    """Rotary position embedding: same shape. `eager` (transformers' apply_rotary_pos_emb): x·cos + rotate_half(x)·sin, four tensors.

    Backward keeps only cos and sin, [1, s, head_dim] each, which all layers share; under autocast they are fp32, and so is the result.
    `inplace`: the serving engines' kernels write over x.
    """
    if t.kernels.rope == "inplace":
        return x
    tables: tuple[Tensor, ...] = ()
    if head_dim:
        tables = tuple(t.shared(f"rotary.{table}", (1, x.shape[1], head_dim)) for table in ("cos", "sin"))
    size = t.itemsize if t.autocast else x.itemsize
    cos = t.op(f"{name}.cos", (x, *tables[:1]), x.shape, itemsize=size, saves=tables[:1])
    half = t.op(f"{name}.rotate_half", (x,), x.shape, itemsize=x.itemsize)
    sin = t.op(f"{name}.sin", (half, *tables[1:]), x.shape, itemsize=size, saves=tables[1:])
    return t.op(f"{name}.rope", (cos, sin), x.shape, itemsize=size)
