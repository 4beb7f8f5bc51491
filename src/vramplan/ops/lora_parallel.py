"""Megatron's low-rank adapters: beside layers that tensor-parallel ranks share, in parts of their own (Megatron-Bridge's PEFT)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..dim import Dim
from ..tape import Tape
from ..tensors import Tensor, Weight
from .lora import Adapter, dropped
from .product import product


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel(Adapter):
    """An adapter beside Megatron's `layer`, which is split by what it makes (`column`), by what it takes (`row`), or not at all (`whole`:
    routed experts, of which all on a rank have one). Several ranks may share the layer (`ranks`), and tokens too (`scatters`).
    """

    layer: str
    side: Literal["column", "row", "whole"]
    ranks: bool
    scatters: bool


def beside(t: Tape, x: Tensor, y: Tensor, layer: str, weight: Weight) -> Tensor:
    """y, and the sum of what stands beside Megatron's `layer` of x, if the training method puts anything there."""
    adapter = t.method.adapter(t.prefix + layer, weight) if t.method else None
    return parallel_lora(t, x, y, adapter) if isinstance(adapter, Parallel) else y


def parallel_lora(t: Tape, x: Tensor, y: Tensor, adapter: Parallel) -> Tensor:
    """x [..., in], y [..., out] -> [..., out]: y + scaling · B A dropout(x), A [rank, in] and B [out, rank], trained.

    Beside a `column` layer A is split by the rank, whose parts are gathered before B, which is split as the layer is; beside a `row` layer
    A as the layer is, its sums reduced in place, and B by what it makes, which is gathered. Backward keeps the input of all tokens, which
    the layer's norm hands on as it gathered them, and A's output. Matrices of one input (queries, keys, values) have one A.
    Source: Megatron-Bridge 0.6 `peft/utils.py` ParallelLinearAdapter and get_adapter_attributes_from_linear, `peft/lora_layers.py`.
    """
    kind: Literal["linear", "experts"] = "experts" if adapter.side == "whole" else "linear"
    wide = Dim(int(y.shape[-1]), "adapter") if adapter.side == "row" else y.shape[-1]
    name = f"{adapter.layer}.lora"
    low = next((op.writes[0] for op in t.ops if op.region == t.region and op.name == f"{t.prefix}{name}.low"), None)
    with t.module(name, x, part="adapters"):
        if low is None:
            low = _low(t, dropped(t, x, adapter), adapter)
        b = t.weight("B.weight", (wide, Dim(adapter.rank, "rank")), kind, dtype=adapter.dtype)
        high = product(t, low, "B", wide, (b,))
        if adapter.side == "row" and adapter.ranks:
            high = t.op("B.gathered", (high,), y.shape)
        if adapter.side != "row" or not adapter.scatters:  # what is scattered is scaled after that, in the same bytes
            high = t.op("scaled", (high,), y.shape)
        return t.op("sum", (y, high), y.shape, itemsize=y.itemsize, passes=True)


def _low(t: Tape, x: Tensor, adapter: Parallel) -> Tensor:
    """A x: [..., in] -> [..., rank], on every rank."""
    rank = Dim(adapter.rank, "rank")
    if adapter.side != "column" or not adapter.ranks:
        a = t.weight("A.weight", (rank, x.shape[-1]), "experts" if adapter.side == "whole" else "linear", dtype=adapter.dtype)
        return product(t, x, "low", rank, (a,))
    part = Dim(adapter.rank, "adapter")
    a = t.weight("A.weight", (part, x.shape[-1]), "linear", dtype=adapter.dtype)
    return t.op("low", (product(t, x, "A", part, (a,)),), (*x.shape[:-1], rank))
