"""Low-rank adapters beside frozen weights, as PEFT computes them: y + scaling · B A dropout(x), and the same for embeddings and experts."""

from __future__ import annotations

from dataclasses import dataclass

from ..dim import Dim
from ..tape import Tape
from ..tensors import Tensor, Weight
from .packed import Packed
from .product import lowered, product


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """What stands beside a layer: matrices of `rank`, `itemsize` bytes per element (`dtype`), `dropout` before them; `dora`: DoRA's
    magnitude too. `packed` is how the layer itself is stored, None for 16 or 32 bits; `merged`: not the layer has it, but its parameter;
    `copies`: so many layers of that shape have one each. `parts`: which of the matrices that the layer joins
    have an adapter each; `rows`: how many positions the layer takes at once, 0 for all.
    """

    rank: int
    itemsize: int
    dtype: str
    dropout: float = 0.0
    dora: bool = False
    packed: Packed | None = None
    merged: bool = False
    copies: int = 1
    parts: tuple[bool, ...] = ()
    rows: int = 0


def lora(t: Tape, x: Tensor, y: Tensor, module: str, adapter: Adapter) -> Tensor:
    """x [..., in], y [..., out] -> [..., out]; A [rank, in] and B [out, rank], trained.

    Each adapted layer casts its input to the adapters' precision, a copy of its own that backward keeps for A's gradient; A's output is
    kept for B's. With dropout the mask (1 B per element) and the dropped input are made too. Over a plain layer the sum is in the wider of
    the two precisions and cast back. Over a packed one (bitsandbytes) the adapter's output is cast before the sum, under autocast neither
    it nor the input is; the output of a 4-bit layer is cloned first.
    Source: PEFT 0.21 `tuners/lora/layer.py` Linear.forward, `tuners/lora/bnb.py` Linear8bitLt.forward and Linear4bit.forward.
    """
    packed, converts = adapter.packed, not (adapter.packed and t.autocast)
    with t.module(f"{module}.lora", x, part="adapters"):
        if packed and not packed.eight:
            y = t.op("clone", (y,), y.shape, itemsize=y.itemsize, passes=True)
        entry = entered(t, x, adapter) if converts else x
        high = low_rank(t, dropped(t, entry, adapter), matrices(t, x.shape[-1], y.shape[-1], adapter))
        scaled = t.op("scaled", (high,), high.shape, itemsize=high.itemsize)
        if packed:
            t.hold(scaled)
            if converts:
                scaled = t.hold(cast(t, scaled, y.itemsize, "scaled"))
        total = t.op("sum", (y, scaled), y.shape, itemsize=max(scaled.itemsize, y.itemsize), passes=True)
        return total if packed else cast(t, total, y.itemsize, "result")


def entered(t: Tape, x: Tensor, adapter: Adapter) -> Tensor:
    """x in the adapters' precision, which a local variable names."""
    return x if x.itemsize == adapter.itemsize else t.hold(cast(t, x, adapter.itemsize, "input"))


def dropped(t: Tape, x: Tensor, adapter: Adapter) -> Tensor:
    """x through the adapter's dropout, with its mask."""
    if not adapter.dropout:
        return x
    mask = t.tensor("mask", x.shape, itemsize=1)
    return t.op("dropout", (x,), x.shape, itemsize=x.itemsize, extra=(mask,), saves=(mask,))


def matrices(t: Tape, inputs: int, outputs: int, adapter: Adapter, stacked: int = 1) -> tuple[Weight, Weight]:
    """A [stacked · rank, in] and B [out, stacked · rank]."""
    rank, copies = Dim(adapter.rank * stacked, "rank"), adapter.copies
    a = t.weight("A.weight", (rank, inputs), "linear", dtype=adapter.dtype, copies=copies)
    return a, t.weight("B.weight", (outputs, rank), "linear", dtype=adapter.dtype, copies=copies)


def low_rank(t: Tape, x: Tensor, weights: tuple[Weight, Weight], name: str = "") -> Tensor:
    """B A x: [..., in] -> [..., out]."""
    a, b = weights
    low = product(t, x, f"{name}A", Dim(a.shape[0], "rank"), (a,))
    return product(t, low, f"{name}B", b.shape[0], (b,))


def cast(t: Tape, x: Tensor, itemsize: int, name: str) -> Tensor:
    """x in `itemsize` bytes per element."""
    return x if x.itemsize == itemsize else t.op(f"{name}.cast", (x,), x.shape, itemsize=itemsize)


def embedding(t: Tape, ids: Tensor, x: Tensor, module: str, vocab: int, adapter: Adapter) -> Tensor:
    """x + scaling · B A[ids]: ids [b, s], x [b, s, width] -> [b, s, width]; A [rank, vocab] and B [width, rank], trained.

    Source: PEFT 0.21 `tuners/lora/layer.py` Embedding.forward.
    """
    with t.module(f"{module}.lora", ids, part="adapters"):
        a, b = matrices(t, vocab, x.shape[-1], adapter)
        low = t.op("A", (ids,), (*ids.shape, Dim(adapter.rank, "rank")), itemsize=adapter.itemsize, weights=(a,), saves=(ids,))
        high = product(t, t.hold(low), "B", x.shape[-1], (b,))
        scaled = t.hold(t.op("scaled", (high,), x.shape, itemsize=high.itemsize))
        total = t.op("sum", (x, scaled), x.shape, itemsize=max(x.itemsize, scaled.itemsize), passes=True)
        return cast(t, total, x.itemsize, "result")


def merged(t: Tape, module: str, shape: tuple[int, int, int], adapter: Adapter) -> Tensor:
    """W + scaling · B A for the matrices of all experts at once, `shape` = [experts, out, in]: a copy, whose gradient is as large.

    A [experts · rank, in] and B [out, experts · rank] are trained; backward keeps them in W's precision. PEFT's check of the sum when it
    parametrises W, another copy for a moment, comes before there is anything else to hold.
    Source: PEFT 0.21 `tuners/lora/layer.py` ParamWrapper and _LoraFactorsProxy (`torch.baddbmm`).
    """
    experts, out, width = shape
    with t.module(f"{module}.lora", part="adapters"):
        weights: tuple[Weight, ...] = matrices(t, width, out, adapter, stacked=experts)
        factors: tuple[Tensor, ...] = ()
        if adapter.itemsize != t.itemsize:
            factors = tuple(t.op(w.name, (), w.shape, itemsize=t.itemsize, weights=(w,)) for w in weights)
            weights = ()
        return t.op("merged", factors, shape, weights=weights, saves=factors)


def routed(t: Tape, x: Tensor, name: str, out: int, weights: tuple[Weight, ...], adapter: Adapter) -> Tensor:
    """x (W + scaling · B A)ᵀ: a router [experts, in] whose parameter, not whose module, has the adapter. Backward keeps x.

    Source: PEFT 0.21 `tuners/lora/layer.py` ParamWrapper, of which this one adds B A as a matrix.
    """
    size = 4 if weights[0].dtype == "fp32" else t.itemsize
    with t.module(f"{name}.lora", part="adapters"):
        a, b = matrices(t, x.shape[-1], out, adapter)
        delta = t.op("delta", (), weights[0].shape, itemsize=size, weights=(a, b))
        full = t.op("added", (delta,), weights[0].shape, itemsize=size, passes=True)
    entry, copy = lowered(t, x, f"{name}.input"), lowered(t, full, f"{name}.weight")
    size = t.autocast or x.itemsize
    return t.op(name, (entry, copy), (*x.shape[:-1], out), itemsize=size, weights=weights, saves=(entry, copy), always=True)
