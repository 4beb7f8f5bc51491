"""LitGPT's low-rank adapters where they differ from PEFT's: over queries, keys and values in one projection, and over a head in chunks."""

from __future__ import annotations

from ..dim import Dim, numel
from ..tape import Tape
from ..tensors import Tensor
from .lora import Adapter, dropped
from .product import lowered, product


def joined(t: Tape, x: Tensor, y: Tensor, module: str, widths: tuple[int, ...], adapter: Adapter) -> Tensor:
    """x [b, s, in], y [b, s, q + k + v] -> like y, with an adapter for each of the `adapter.parts`, n of them.

    A [n · rank, in] reads one dropped x; B [sum of their `widths`, rank] is a grouped convolution over its output, of which backward keeps
    the input. Unless all three have one, the results are copied into zeros as wide as y: backward keeps them, and where they go (int64).
    Source: LitGPT 0.5.13 `litgpt/lora.py`, LoRAQKVLinear; `aten::index_copy`, pytorch `derivatives.yaml` (source is saved for its shape).
    """
    chosen = [int(width) for width, wanted in zip(widths, adapter.parts, strict=True) if wanted]
    with t.module(f"{module}.lora", x, part="adapters"):
        rows = Dim(adapter.rank * len(chosen), "rank")
        a = t.weight("A.weight", (rows, x.shape[-1]), "linear", dtype=adapter.dtype)
        b = t.weight("B.weight", (sum(chosen), adapter.rank), "linear", dtype=adapter.dtype)
        low = product(t, dropped(t, x, adapter), "A", rows, (a,))
        high = product(t, t.hold(low), "B", Dim(sum(chosen)), (b,))
        if len(chosen) < len(widths):
            places = t.tensor("places", (sum(chosen),), itemsize=8)
            high = t.op("padded", (t.hold(high),), y.shape, itemsize=high.itemsize, saves=(high, places), extra=(places,))
        scaled = t.op("scaled", (high,), y.shape, itemsize=high.itemsize)
        return t.op("sum", (y, scaled), y.shape, itemsize=y.itemsize, passes=True)


def in_chunks(t: Tape, x: Tensor, y: Tensor, module: str, adapter: Adapter) -> Tensor:
    """As `lora` over a layer that takes `adapter.rows` positions at once: x [b, s, in], y [b, s, out] -> like y.

    Of what is as wide as y, only the result is there for all positions; B's output, the scaled one and the base's are those of a chunk.
    Source: LitGPT 0.5.13 `litgpt/lora.py` LoRALinear, `litgpt/model.py` GPT.forward (`lm_head_chunk_size`).
    """
    with t.module(f"{module}.lora", x, part="adapters"):
        a = t.weight("A.weight", (adapter.rank, x.shape[-1]), "linear", dtype=adapter.dtype)
        b = t.weight("B.weight", (y.shape[-1], adapter.rank), "linear", dtype=adapter.dtype)
        low = product(t, dropped(t, x, adapter), "A", Dim(adapter.rank, "rank"), (a,))
        entry = lowered(t, low, "B.input")
        piece = numel(y.shape) // int(y.shape[1]) * min(adapter.rows, int(y.shape[1])) * y.itemsize
        weights, casts = (b,), t.cast_weights((b,), kept=True)
        added = t.op("B", (entry,), (Dim(1),), weights=weights, saves=(entry,), extra=casts, workspace=3 * piece, backward_workspace=piece)
        return t.op("sum", (y, added), y.shape, itemsize=y.itemsize, passes=True)
