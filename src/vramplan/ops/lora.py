"""Low-rank adapters beside a linear layer: y + scaling · B A dropout(x)."""

from __future__ import annotations

from ..tape import Dim, Tape, Tensor, Weight


def lora(t: Tape, x: Tensor, y: Tensor, weight: Weight, *, rank: int, itemsize: int, dropout: float, packed: bool) -> Tensor:
    """x [..., in], y [..., out] -> [..., out]; A [rank, in] and B [out, rank], trained, in `itemsize` bytes.

    Each adapted layer casts its input to the adapters' dtype, a copy of its own that backward keeps for A's gradient; A's output is kept
    for B's. With dropout the mask (1 B per element) and the dropped input are made too. Over a plain layer the sum is in the adapters'
    dtype and cast back; over a `packed` one (bitsandbytes) the base's output is cloned and the adapter's cast before the sum.
    Source: PEFT 0.21 `tuners/lora/layer.py` Linear.forward, `tuners/lora/bnb.py` Linear4bit.forward.
    """
    prefix = weight.name.removesuffix(".weight").rpartition(".")[2]
    dtype = {4: "fp32", 2: None}[itemsize]
    width, out = x.shape[-1], y.shape[-1]
    part, t.part = t.part, "adapters"
    with t.module(f"{prefix}.lora", x):
        if packed:
            y = t.op("clone", (y,), y.shape, itemsize=y.itemsize, passes=True)
        entry = x if x.itemsize == itemsize else t.op("cast", (x,), x.shape, itemsize=itemsize)
        if dropout:
            mask = t.tensor("mask", x.shape, itemsize=1)
            entry = t.op("dropout", (entry,), x.shape, itemsize=itemsize, extra=(mask,), saves=(mask,))
        a = t.weight("A.weight", (rank, width), "linear", dtype=dtype)
        b = t.weight("B.weight", (out, rank), "linear", dtype=dtype)
        low = t.op("A", (t.hold(entry),), (*x.shape[:-1], Dim(rank, "rank")), itemsize=itemsize, weights=(a,), saves=(entry,))
        high = t.op("B", (low,), y.shape, itemsize=itemsize, weights=(b,), saves=(low,))
        scaled = t.op("scaled", (high,), y.shape, itemsize=itemsize)
        if itemsize != y.itemsize and packed:
            scaled = t.op("scaled_cast", (scaled,), y.shape, itemsize=y.itemsize)
        wide = max(scaled.itemsize, y.itemsize)
        total = t.op("sum", (y, scaled), y.shape, itemsize=wide, passes=scaled.itemsize == y.itemsize)
        result = total if wide == y.itemsize else t.op("result", (total,), y.shape, itemsize=y.itemsize)
    t.part = part
    return result
