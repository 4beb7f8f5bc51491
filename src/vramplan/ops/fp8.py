"""A linear layer whose three products are in FP8, as torchao's Float8Linear, tensor-wise scaled, not compiled.

What is kept is not FP8: the input in 16 bits, and the weight itself. Every product casts its operands anew.
"""

from __future__ import annotations

from ..dim import numel
from ..tape import Tape
from ..tensors import Tensor, Weight

CAST = 9
"""Most bytes of an element while it is cast: scaled in fp32, clamped in fp32, in FP8 (torchao 0.18 `float8_training_tensor.py`
_ToFloat8ConstrFunc, `float8_utils.py` to_fp8_saturated)."""


def runs_in_fp8(t: Tape, weight: Weight) -> bool:
    """Whether the layer is converted: a linear one, not the head, both sizes multiples of 16.

    The model's first linear layer is not either (accelerate 1.15 `utils/ao.py` filter_linear_layers): one of as many as there are layers,
    whose 16-bit copy under autocast is left out.
    """
    return t.fp8 and weight.kind == "linear" and len(weight.shape) == 2 and not any(int(size) % 16 for size in weight.shape)


def fp8_product(t: Tape, x: Tensor, name: str, out: int, weights: tuple[Weight, ...]) -> Tensor:
    """x Wᵀ (+ b): [..., in] -> [..., out], x in 16 bits. Backward keeps x; the bias is added to a tensor of its own.

    Forward: x and W cast one after the other. Backward: its gradient cast twice, W and x once; operands that are not laid out as the
    product needs them are copied; the weight's gradient is made in 16 bits, then cast to the weight's dtype.
    Source: torchao 0.18 `float8_linear.py` matmul_with_hp_or_float8_args, `float8_ops.py` preprocess_addmm.
    """
    rows, width = numel(x.shape[:-1]), int(x.shape[-1])
    n, m, g = rows * width, int(out) * width, rows * int(out)
    size = x.itemsize
    forward = max(CAST * n, n + CAST * m, n + m + size * g) - size * g
    made = size * n + t.itemsize * m
    phases = (
        CAST * g,
        g + CAST * m,
        g + 2 * m + size * n,
        g + m + size * n + CAST * g,
        2 * g + m + size * n + CAST * n,
        3 * g + m + (size + 2) * n + size * m,
        size * (n + m) + (t.itemsize * m if t.itemsize > size else 0),
    )
    y = t.op(
        name,
        (x,),
        (*x.shape[:-1], out),
        itemsize=size,
        weights=weights[:1],
        flops=2 * n * int(out),
        saves=(x,),
        workspace=max(forward, 0),
        backward_workspace=max(max(phases) - made, 0),
    )
    return t.op(f"{name}.bias", (y,), y.shape, itemsize=size, weights=weights[1:], passes=True) if weights[1:] else y
