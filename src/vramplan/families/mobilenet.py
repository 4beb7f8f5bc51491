"""MobileNet-V5 (300M encoder), Gemma 3n's vision tower: convolutions and multi-query attention over a picture of 768 × 768.

Four stages, each halving the picture: fused inverted residuals, universal inverted residuals (UIR) with depthwise kernels at the start or in
the middle, and attention blocks with one key-value head; the last two stages are fused into 256 tokens of 2048. All norms are RMS norms.
The stages are written in the file that the checkpoint was trained with: timm 1.0.31 `models/mobilenetv5.py`, `models/_efficientnet_blocks.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..ops import add, attention
from ..tape import Dim, Tape, Tensor

OUT = Dim(2048, "vision_hidden")
TOKENS = 256


def mobilenet_v5(t: Tape) -> Tensor:
    """Pixels -> [1, 256, 2048]."""
    x = t.tensor("pixel_values", (Dim(1), Dim(768 * 768, "pixels"), Dim(3)))
    x = convolution(t, x, "conv_stem.conv", 64, 3, stride=2, norm="conv_stem.bn", bias=True)
    with t.module("blocks"):
        x = stage(t, x, 0, [([0], ("fused", 2, 128)), ([1, 2], ("fused", 1, 128))])
        x = stage(t, x, 1, [([0], ("uir", 2, 256, 6, 3, 5)), ([1, 3], ("uir", 1, 256, 4, 5, 0)), ([2, 4], ("uir", 1, 256, 4, 3, 0))])
        wide = [([0], ("uir", 2, 640, 6, 5, 5)), (range(1, 8), ("uir", 1, 640, 4, 5, 0)), ([8], ("uir", 1, 640, 1, 0, 0))]
        third = stage(t, x, 2, [*wide, (range(9, 37, 2), ("mqa", 12, 64, 2)), (range(10, 37, 2), ("uir", 1, 640, 2, 0, 0))])
        deep = [([0], ("uir", 2, 1280, 6, 5, 5)), (range(1, 39, 2), ("mqa", 16, 96, 1)), (range(2, 39, 2), ("uir", 1, 1280, 2, 0, 0))]
        fourth = stage(t, third, 3, deep)
    fused = t.op("msfa.concat", (third, fourth), (Dim(1), third.shape[1], third.shape[2] + fourth.shape[2]))
    with t.module("msfa.ffn"):
        y = convolution(t, fused, "pw_exp.conv", 2 * fused.shape[-1], 1, norm="pw_exp.bn")
        y = convolution(t, y, "pw_proj.conv", OUT, 1, norm="pw_proj.bn")
    return t.op("msfa", (y,), (Dim(1), Dim(TOKENS, "image_tokens"), OUT), weights=(t.weight("msfa.norm.weight", (OUT,), "norm"),))


def stage(t: Tape, x: Tensor, index: int, blocks: Iterable[tuple[Iterable[int], tuple[str | int, ...]]]) -> Tensor:
    """The blocks of a stage, equal ones together."""
    for indices, (kind, *numbers) in blocks:
        with t.layers(str(index), list(indices), x) as x:
            x = {"fused": fused_residual, "uir": inverted_residual, "mqa": multi_query}[str(kind)](t, x, *map(int, numbers))
    return x


def convolution(
    t: Tape, x: Tensor, name: str, out: int, kernel: int, *, stride: int = 1, norm: str = "", depthwise: bool = False, bias: bool = False
) -> Tensor:
    """[1, pixels, in] -> [1, pixels / stride², out], and a norm behind it."""
    weights = [t.weight(f"{name}.weight", (out, 1 if depthwise else x.shape[-1], kernel, kernel), "conv")]
    if bias:
        weights.append(t.weight(f"{name}.bias", (out,), "conv"))
    if norm:
        weights.append(t.weight(f"{norm}.weight", (out,), "norm"))
    return t.op(name, (x,), (Dim(1), x.shape[1] // stride**2, out), weights=tuple(weights), saves=(x,))


def fused_residual(t: Tape, x: Tensor, stride: int, out: int) -> Tensor:
    """EdgeResidual: a full 3 × 3 convolution to four times the width, a pointwise one back."""
    y = convolution(t, x, "conv_exp", 4 * x.shape[-1], 3, stride=stride, norm="bn1")
    y = convolution(t, y, "conv_pwl", out, 1, norm="bn2")
    return add(t, y, x) if stride == 1 else y


def inverted_residual(t: Tape, x: Tensor, stride: int, out: int, expansion: int, start: int, middle: int) -> Tensor:
    """UniversalInvertedResidual: depthwise, pointwise up, depthwise (which takes the stride), pointwise down, a learnt scale."""
    y = convolution(t, x, "dw_start.conv", x.shape[-1], start, norm="dw_start.bn", depthwise=True) if start else x
    y = convolution(t, y, "pw_exp.conv", expansion * x.shape[-1], 1, norm="pw_exp.bn")
    if middle:
        y = convolution(t, y, "dw_mid.conv", y.shape[-1], middle, stride=stride, norm="dw_mid.bn", depthwise=True)
    y = convolution(t, y, "pw_proj.conv", out, 1, norm="pw_proj.bn")
    y = t.op("layer_scale", (y,), y.shape, weights=(t.weight("layer_scale.gamma", (out,), "norm"),))
    return add(t, y, x) if stride == 1 else y


def multi_query(t: Tape, x: Tensor, heads: int, d: int, kv_stride: int) -> Tensor:
    """MobileAttention: one head of keys and values, taken from a coarser picture where `kv_stride` says so."""
    y = t.op("norm", (x,), x.shape, weights=(t.weight("norm.weight", (x.shape[-1],), "norm"),))
    with t.module("attn", y):
        sides = []
        for side in ("key", "value"):
            z = y
            if kv_stride > 1:
                z = convolution(t, y, f"{side}.down_conv", x.shape[-1], 3, stride=kv_stride, norm=f"{side}.norm", depthwise=True)
            sides.append(convolution(t, z, f"{side}.proj", d, 1))
        q = convolution(t, y, "query.proj", heads * d, 1)
        y = attention(t, q, *sides, heads=heads, kv_heads=1, past=False)
        y = convolution(t, y, "output.proj", x.shape[-1], 1)
    y = t.op("layer_scale", (y,), y.shape, weights=(t.weight("layer_scale.gamma", (x.shape[-1],), "norm"),))
    return add(t, y, x)
