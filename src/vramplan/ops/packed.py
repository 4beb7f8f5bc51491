"""Products with bitsandbytes' packed weights: what the frozen linear layers of QLoRA make besides their results."""

from __future__ import annotations

from dataclasses import dataclass

from ..dim import numel
from ..tape import Tape
from ..tensors import Tensor, Weight
from .nf4tensor import nf4tensor_product

KERNEL_ROWS = 64
"""Up to so many rows a kernel multiplies with the 4-bit weight as it is (bitsandbytes 0.50 `backends/cuda/ops.py`, gemm_4bit)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """How frozen linear layers are stored: `kind` nf4, fp4, int8 or nf4tensor (torchao's). 4-bit ones compute in elements of `compute`
    bytes, and have quantised scales with `double`; `half` says that activations are fp16, which LLM.int8() computes in. `head`: the head
    too. `twice`: a 4-bit weight was quantised from fp16 and is unpacked to it, then copied to the precision computed in. `keeps`: it keeps
    its input for backward, as bitsandbytes' did before 0.43.2 (its #1270), out of reach of checkpointing.
    """

    kind: str
    compute: int = 2
    double: bool = False
    half: bool = False
    head: bool = False
    twice: bool = False
    keeps: bool = False

    @property
    def eight(self) -> bool:
        """Whether it is LLM.int8()."""
        return self.kind == "int8"

    @property
    def format(self) -> str:
        """The number format, as formats/ names it."""
        return self.kind + "-double" * (self.double and not self.eight) + "-head" * self.head


def packed_product(t: Tape, x: Tensor, name: str, out: int, weights: tuple[Weight, ...], packed: Packed) -> Tensor:
    """[..., in] -> [..., out] in x's precision, by the first of `weights`, which is packed and frozen."""
    if packed.kind == "nf4tensor":
        return nf4tensor_product(t, x, name, out, weights)
    return (_int8 if packed.eight else _four_bit)(t, x, name, out, weights, packed)


def _four_bit(t: Tape, x: Tensor, name: str, out: int, weights: tuple[Weight, ...], packed: Packed) -> Tensor:
    """x goes to the computing precision, the product back to x's. Backward keeps the packed weight, and x where the version does.

    The weight is unpacked for as long as the product takes, forward (beyond 64 rows) and backward; doubly quantised scales too, to fp32, in
    forward twice. Source: bitsandbytes 0.50 `nn/modules.py` Linear4bit.forward, `autograd/_functions.py` MatMul4Bit,
    `backends/cuda/ops.py` _dequant_linear_fallback, `functional.py` dequantize_4bit.
    """
    n, rows = numel(weights[0].shape), numel(x.shape[:-1])
    scales = n // 64 * 4 if packed.double else 0
    full = n * (packed.compute + 2 * packed.twice)
    entry = _cast(t, x, packed.compute, f"{name}.input")
    y = t.op(
        name,
        (entry,),
        (*x.shape[:-1], out),
        itemsize=packed.compute,
        weights=weights,
        flops=2 * numel(x.shape) * int(out),
        saves=(entry,) if packed.keeps else (),
        always=True,
        workspace=full + 2 * scales if rows > KERNEL_ROWS else 0,
        backward_workspace=full + scales,
        pins=(),
    )
    if packed.keeps and y.grad:
        entry.storage.pinned = True
    return _cast(t, y, x.itemsize, f"{name}.output")


def _int8(t: Tape, x: Tensor, name: str, out: int, weights: tuple[Weight, ...], packed: Packed) -> Tensor:
    """LLM.int8() at its threshold of 6, no input beyond it. Backward keeps x, out of reach of checkpointing (`ctx.tensors`).

    Forward: x in fp16, its int8 form, its absolute values and which pass the threshold; then the int8 form and the product in int32 and,
    for other precisions, in fp16. Backward: the weight in x's precision. Source: bitsandbytes 0.50 `autograd/_functions.py` MatMul8bitLt,
    `backends/cuda/ops.py` int8_vectorwise_quant and int8_mm_dequant. Autocast does not reach it.
    """
    elements, results = numel(x.shape), numel(x.shape[:-1]) * int(out)
    other = 0 if packed.half else 2
    quantised = t.op(f"{name}.quantised", (), x.shape, itemsize=1, workspace=elements * (other + 2 + 1))
    kept = x.storage
    y = t.op(
        name,
        (x, quantised),
        (*x.shape[:-1], out),
        itemsize=x.itemsize,
        weights=weights,
        flops=2 * elements * int(out),
        workspace=results * (4 + other),
        backward_workspace=numel(weights[0].shape) * x.itemsize,
        pins=(kept,) if kept.grad else (),
    )
    if kept.grad:
        kept.spared = kept.late and (kept.spared or not (kept.pinned or kept.saved))
        kept.pinned = True
    return y


def unpacked(t: Tape, name: str, weight: Weight, packed: Packed, itemsize: int) -> Tensor:
    """`weight` unpacked, [out, in] in `itemsize` bytes: as DoRA's norms ask for it (PEFT 0.21 `utils/integrations.py`).

    LLM.int8()'s comes in fp32, by way of another fp32 copy (bitsandbytes 0.50 `_ops.py` int8_vectorwise_dequant).
    """
    n = numel(weight.shape)
    if packed.eight:
        full = t.op(f"{name}.unpacked", (), weight.shape, itemsize=4, workspace=n * 4)
    else:
        full = t.op(f"{name}.unpacked", (), weight.shape, itemsize=packed.compute, workspace=n // 64 * 4 if packed.double else 0)
    return _cast(t, full, itemsize, f"{name}.unpacked")


def _cast(t: Tape, x: Tensor, itemsize: int, name: str) -> Tensor:
    return x if x.itemsize == itemsize else t.op(f"{name}.cast", (x,), x.shape, itemsize=itemsize)
