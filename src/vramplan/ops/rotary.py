"""Rotary embeddings as LitGPT and torchtune write them; transformers' and those of kernels are in `pointwise.rope`."""

from __future__ import annotations

from ..tape import Tape
from ..tensors import Tensor


def concatenated(t: Tape, x: Tensor, name: str, tables: tuple[Tensor, ...]) -> Tensor:
    """x·cos + rotated·sin: same shape. Tables and products are fp32; the result is cast, then joined with what is not rotated.

    Backward keeps the tables. Source: LitGPT 0.5.13 `litgpt/model.py`, apply_rope and CausalSelfAttention.forward.
    """
    half = t.op(f"{name}.rotate_half", (x,), x.shape, itemsize=x.itemsize)
    cos = t.op(f"{name}.cos", (x, *tables[:1]), x.shape, itemsize=4, saves=tables[:1])
    sin = t.op(f"{name}.sin", (half, *tables[1:]), x.shape, itemsize=4, saves=tables[1:])
    y = t.op(f"{name}.rope", (cos, sin), x.shape, itemsize=4)
    cast = y if x.itemsize == 4 else t.op(f"{name}.cast", (y,), x.shape, itemsize=x.itemsize)
    return t.op(f"{name}.joined", (t.hold(cast),), x.shape, itemsize=x.itemsize)


def stacked(t: Tape, x: Tensor, name: str) -> Tensor:
    """x in fp32, its pairs rotated and stacked, then cast: same shape. Backward keeps parts of a table that the framework holds.

    Source: torchtune 0.6.1 `modules/position_embeddings.py`, RotaryPositionalEmbeddings.
    """
    upcast = x if x.itemsize == 4 else t.op(f"{name}.float", (x,), x.shape, itemsize=4)
    y = t.op(f"{name}.stacked", (t.hold(upcast),), x.shape, itemsize=4, workspace=upcast.nbytes)
    return y if x.itemsize == 4 else t.op(f"{name}.rope", (y,), x.shape, itemsize=x.itemsize)
