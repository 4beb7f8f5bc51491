"""Element-wise ops and rotary embeddings."""

from __future__ import annotations

from ..tape import Tape
from ..tensors import Tensor
from .linear import linear
from .lora_parallel import beside
from .rotary import concatenated, stacked


def add(t: Tape, a: Tensor, b: Tensor, name: str = "residual") -> Tensor:
    """a + b, same shapes. Backward keeps nothing."""
    return t.op(name, (a, b), a.shape, itemsize=max(a.itemsize, b.itemsize), passes=True)


def multiply(t: Tape, a: Tensor, b: Tensor, name: str = "multiply") -> Tensor:
    """a · b, same shapes. Backward keeps both."""
    return t.op(name, (a, b), a.shape, itemsize=max(a.itemsize, b.itemsize), saves=(a, b))


def dropout(t: Tape, x: Tensor, share: float, name: str = "dropout") -> Tensor:
    """x with a `share` of its elements zeroed, in training only: same shape. Backward keeps a mask of one byte per element.

    Source: `aten::native_dropout`, pytorch `derivatives.yaml`.
    """
    if not share or t.method is None or not t.kernels.dropout:
        return x
    mask = t.tensor(f"{name}.mask", x.shape, itemsize=1)
    return t.op(name, (x,), x.shape, itemsize=x.itemsize, extra=(mask,), saves=(mask,))


def activation(t: Tape, x: Tensor, name: str = "act_fn") -> Tensor:
    """gelu, silu, relu², tanh …: same shape. Backward keeps x (relu its output, of the same size)."""
    return t.op(name, (x,), x.shape, itemsize=x.itemsize, saves=(x,))


def sigmoid(t: Tape, x: Tensor, name: str = "sigmoid") -> Tensor:
    """1 / (1 + exp(−x)): same shape. Backward keeps the result (`aten::sigmoid`, pytorch `derivatives.yaml`)."""
    return t.op(name, (x,), x.shape, itemsize=x.itemsize, saves_out=True)


def gated(t: Tape, x: Tensor, gate: str, up: str, ffn: int, *, bias: bool = False) -> Tensor:
    """act(x Wgᵀ) · (x Wuᵀ): [..., hidden] -> [..., ffn].

    `eager` and `plain` (transformers' LlamaMLP): gate, act(gate) and up are tensors of their own, all kept for backward. `merged` (vLLM's
    MergedColumnParallelLinear and SiluAndMul): one tensor [..., 2·ffn] and the product; the checkpoint's two weights stay two. `fused`: see
    `act_and_multiply`.
    """
    if t.kernels.mlp == "fused":
        return act_and_multiply(t, linear(t, x, gate, ffn, bias=bias), linear(t, x, up, ffn, bias=bias))
    if t.kernels.mlp != "merged":
        gated_x = activation(t, linear(t, x, gate, ffn, bias=bias))
        return multiply(t, gated_x, linear(t, x, up, ffn, bias=bias), "gated")
    weights = tuple(t.weight(f"{name}.weight", (ffn, x.shape[-1]), "linear") for name in (gate, up))
    if bias:
        weights += tuple(t.weight(f"{name}.bias", (ffn,), "linear") for name in (gate, up))
    rows = x.nbytes // x.itemsize
    both = t.op("gate_up", (x,), (*x.shape[:-1], 2 * ffn), weights=weights, flops=4 * rows * int(ffn), saves=(x,))
    both = beside(t, x, both, "linear_fc1", weights[0])
    return t.op("act_and_mul", (both,), (*x.shape[:-1], ffn), saves=(both,))


def act_and_multiply(t: Tape, gate: Tensor, up: Tensor) -> Tensor:
    """act(gate) · up in one kernel, same shapes: backward keeps both, and writes their gradients over them.

    Source: Liger 0.8 `ops/swiglu.py` LigerSiLUMulFunction, `ops/geglu.py` LigerGELUMulFunction.
    """
    return t.op("gated", (gate, up), gate.shape, itemsize=gate.itemsize, saves=(gate, up), overwrites="kept")


def rope(t: Tape, x: Tensor, name: str, head_dim: int | None = None) -> Tensor:
    """Rotary position embedding: same shape. `eager` (transformers' apply_rotary_pos_emb): x·cos + rotate_half(x)·sin, four tensors.

    Backward keeps only cos and sin, [1, s, head_dim] each, which all layers share, or which each layer makes (kernels `own`) or looks up
    in its buffers of all positions (`cached`); under autocast they are fp32, and so is the result. `inplace`: kernels of serving engines
    and of Liger (0.8 `ops/rope.py`) write over x, and backward over the gradient. `concatenated` and `stacked`: see `rotary`;
    `complex`: see `complex_product`.
    """
    t.rotated |= {int(head_dim)} if head_dim and not t.in_tower else set()
    if t.kernels.rope == "stacked":
        return stacked(t, x, name)
    if t.kernels.rope == "complex":
        return complex_product(t, x, name, head_dim)
    if t.kernels.rope == "single":
        return t.op(f"{name}.rope", (x,), x.shape, itemsize=x.itemsize)
    tables: tuple[Tensor, ...] = ()
    if head_dim and not (t.kernels.rope == "inplace" and t.method is None):
        tables = tuple(_table(t, table, (1, x.shape[1], head_dim)) for table in ("cos", "sin"))
    if t.kernels.rope == "inplace":
        for table in tables:
            table.saved = int(x.storage.grad)
        return x
    if t.kernels.rope == "concatenated":
        return concatenated(t, x, name, tables)
    size = t.itemsize if t.autocast else x.itemsize
    cos = t.op(f"{name}.cos", (x, *tables[:1]), x.shape, itemsize=size, saves=tables[:1])
    half = t.op(f"{name}.rotate_half", (x,), x.shape, itemsize=x.itemsize)
    sin = t.op(f"{name}.sin", (half, *tables[1:]), x.shape, itemsize=size, saves=tables[1:])
    return t.op(f"{name}.rope", (cos, sin), x.shape, itemsize=size)


def complex_product(t: Tape, x: Tensor, name: str, head_dim: int | None) -> Tensor:
    """x in fp32, pairs of it as complex numbers, times those of the positions, back to x's precision: [..., width] -> [..., width].

    The positions' numbers, [s, head_dim / 2] of 8 B, are a buffer that stays. Source: torchtitan 0.2.2 `models/llama3/model/model.py`
    apply_rotary_emb.
    """
    if head_dim:
        t.shared("freqs_cis", (x.shape[1], head_dim), itemsize=4).saved = int(x.storage.grad)
    real = t.op(f"{name}.float", (x,), x.shape, itemsize=4)
    product = t.op(f"{name}.product", (real,), x.shape, itemsize=4)
    return t.op(f"{name}.rope", (product,), x.shape, itemsize=x.itemsize)


def _table(t: Tape, name: str, shape: tuple[int, ...]) -> Tensor:
    """Cosines or sines of the positions, `shape` [1, s, head_dim]: the same for queries and keys."""
    if t.kernels.rotary == "shared":
        return t.shared(f"rotary.{name}", shape)
    own = f"rotary.{name} of {t.region}"
    found = next((table for table in t.tables if table.name == own), None)
    if found is None:
        if t.kernels.rotary == "cached":
            t.weight(f"rotary_emb.{name}_cached", (t.positions, shape[-1]), "buffer")
        found = t.hold(t.tensor(own, shape))
        t.tables.append(found)
    return found
