"""Unsloth's autograd functions over frozen layers with adapters: what a layer, or a whole MLP, keeps and makes as one function.

Adapters are applied in place, in x's precision; their own low-rank products [rows, rank] are left out. A packed weight is unpacked in
forward into a buffer that stays (the engine counts it), in backward into a tensor of its own.
"""

from __future__ import annotations

from ..dim import numel
from ..tape import Tape
from ..tensors import Tensor, Weight
from .lora import Adapter, matrices


def fused_lora(t: Tape, x: Tensor, name: str, out: int, weights: tuple[Weight, ...], adapter: Adapter) -> Tensor:
    """x (W + B A)ᵀ: [..., in] -> [..., out]. Backward keeps x, which is shared where several layers read it.

    Source: Unsloth 2026.10.9 `kernels/fast_lora.py` LoRA_QKV, LoRA_W. LoRA_QKV writes x's gradient over x; here it is a tensor beside it.
    """
    return t.op(
        name,
        (x,),
        (*x.shape[:-1], out),
        itemsize=x.itemsize,
        weights=(*weights, *_beside(t, name, weights[0], adapter)),
        flops=2 * numel(x.shape) * int(out),
        saves=(x,),
        backward_workspace=_unpacked(weights[0], adapter),
    )


def lora_mlp(t: Tape, x: Tensor, ffn: int, names: tuple[str, str, str]) -> Tensor:
    """act(x Wgᵀ) · (x Wuᵀ) through Wdᵀ, each with its adapter: [..., hidden] -> [..., hidden].

    Backward keeps x, gate and up, not their product. It makes the product's gradient, [..., ffn], over which the product itself is written
    again; the gradients of gate and up go over those, that of x over x. Source: Unsloth 2026.10.9 `kernels/fast_lora.py` LoRA_MLP.
    """
    hidden, wide = x.shape[-1], (*x.shape[:-1], ffn)
    gate, up = (t.tensor(name, wide, x.itemsize) for name in names[:2])
    weights: list[Weight] = []
    unpacked = 0
    for name, shape in zip(names, ((ffn, hidden), (ffn, hidden), (hidden, ffn)), strict=True):
        weight = t.weight(f"{name}.weight", shape, "linear")
        adapter = t.method.adapter(t.prefix + name, weight) if t.method else None
        weights += [weight, *(_beside(t, name, weight, adapter) if adapter else ())]
        unpacked = _unpacked(weight, adapter)
    return t.op(
        "lora_mlp",
        (x,),
        x.shape,
        itemsize=x.itemsize,
        weights=tuple(weights),
        flops=6 * numel(x.shape) * int(ffn),
        saves=(x, gate, up),
        extra=(gate, up),
        workspace=gate.nbytes,
        backward_workspace=3 * gate.nbytes + unpacked,
        overwrites="kept",
    )


def _beside(t: Tape, name: str, weight: Weight, adapter: Adapter) -> tuple[Weight, Weight]:
    """The adapter's matrices of the layer `name`."""
    with t.module(f"{name}.lora", part="adapters"):
        return matrices(t, weight.shape[1], weight.shape[0], adapter)


def _unpacked(weight: Weight, adapter: Adapter | None) -> int:
    """Bytes of `weight` unpacked, where it is packed."""
    return numel(weight.shape) * adapter.packed.compute if adapter and adapter.packed else 0
