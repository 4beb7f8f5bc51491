"""MobileNet-V5 (300M encoder), Gemma 3n's vision tower: convolutions and multi-query attention over a picture of 768 × 768.

Four stages, each halving the picture: fused inverted residuals, universal inverted residuals (UIR) with depthwise kernels at the start or
in the middle, and attention blocks with one key-value head; the last two stages are fused into 256 tokens of 2048. All norms are RMS norms.
The stages are written in the file that the checkpoint was trained with: timm 1.0.31 `models/mobilenetv5.py`,
`models/_efficientnet_blocks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..dim import Dim
from ..ops import add, attention
from ..tape import Tape
from ..tensors import Tensor

OUT = Dim(2048, "vision_hidden")
TOKENS = Dim(256, "image_tokens")


def mobilenet_v5(t: Tape) -> Tensor:
    """Pixels -> [1, 256, 2048]."""
    x = t.tensor("pixel_values", (Dim(1), Dim(768 * 768, "pixels"), Dim(3)))
    x = convolution(t, x, "conv_stem.conv", 64, 3, stride=2, norm="conv_stem.bn", bias=True)
    with t.module("blocks"):
        x = fused_residual(t, x, "0", [0], out=128, stride=2)
        x = fused_residual(t, x, "0", [1, 2], out=128)
        x = inverted_residual(t, x, "1", [0], out=256, expansion=6, start=3, middle=5, stride=2)
        x = inverted_residual(t, x, "1", [1, 3], out=256, expansion=4, start=5)
        x = inverted_residual(t, x, "1", [2, 4], out=256, expansion=4, start=3)
        x = inverted_residual(t, x, "2", [0], out=640, expansion=6, start=5, middle=5, stride=2)
        x = inverted_residual(t, x, "2", range(1, 8), out=640, expansion=4, start=5)
        x = inverted_residual(t, x, "2", [8], out=640, expansion=1)
        x = multi_query(t, x, "2", range(9, 37, 2), heads=12, d=64, kv_stride=2)
        third = inverted_residual(t, x, "2", range(10, 37, 2), out=640, expansion=2)
        x = inverted_residual(t, third, "3", [0], out=1280, expansion=6, start=5, middle=5, stride=2)
        x = multi_query(t, x, "3", range(1, 39, 2), heads=16, d=96)
        fourth = inverted_residual(t, x, "3", range(2, 39, 2), out=1280, expansion=2)
    with t.module("msfa"):
        fused = t.op("concat", (third, fourth), (Dim(1), third.shape[1], third.shape[2] + fourth.shape[2]))
        y = convolution(t, fused, "ffn.pw_exp.conv", 2 * fused.shape[-1], 1, norm="ffn.pw_exp.bn")
        y = convolution(t, y, "ffn.pw_proj.conv", OUT, 1, norm="ffn.pw_proj.bn")
        return t.op("pooled", (y,), (Dim(1), TOKENS, OUT), weights=(t.weight("norm.weight", (OUT,), "norm"),))


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


def fused_residual(t: Tape, x: Tensor, stage: str, indices: Sequence[int], *, out: int, stride: int = 1) -> Tensor:
    """EdgeResidual: a full 3 × 3 convolution to four times the width, a pointwise one back."""
    with t.layers(stage, indices, x) as x:
        y = convolution(t, x, "conv_exp", 4 * x.shape[-1], 3, stride=stride, norm="bn1")
        y = convolution(t, y, "conv_pwl", out, 1, norm="bn2")
        return add(t, y, x) if stride == 1 else y


def inverted_residual(
    t: Tape, x: Tensor, stage: str, indices: Sequence[int], *, out: int, expansion: int, start: int = 0, middle: int = 0, stride: int = 1
) -> Tensor:
    """UniversalInvertedResidual: depthwise, pointwise up, depthwise (which takes the stride), pointwise down, a learnt scale."""
    with t.layers(stage, indices, x) as x:
        y = convolution(t, x, "dw_start.conv", x.shape[-1], start, norm="dw_start.bn", depthwise=True) if start else x
        y = convolution(t, y, "pw_exp.conv", expansion * x.shape[-1], 1, norm="pw_exp.bn")
        if middle:
            y = convolution(t, y, "dw_mid.conv", y.shape[-1], middle, stride=stride, norm="dw_mid.bn", depthwise=True)
        y = layer_scale(t, convolution(t, y, "pw_proj.conv", out, 1, norm="pw_proj.bn"))
        return add(t, y, x) if stride == 1 else y


def multi_query(t: Tape, x: Tensor, stage: str, indices: Sequence[int], *, heads: int, d: int, kv_stride: int = 1) -> Tensor:
    """MobileAttention: one head of keys and values, taken from a coarser picture where `kv_stride` says so."""
    with t.layers(stage, indices, x) as x:
        width = x.shape[-1]
        y = t.op("norm", (x,), x.shape, weights=(t.weight("norm.weight", (width,), "norm"),))
        with t.module("attn", y):
            sides = []
            for side in ("key", "value"):
                z = y
                if kv_stride > 1:
                    z = convolution(t, y, f"{side}.down_conv", width, 3, stride=kv_stride, norm=f"{side}.norm", depthwise=True)
                sides.append(convolution(t, z, f"{side}.proj", d, 1))
            q = convolution(t, y, "query.proj", heads * d, 1)
            y = attention(t, q, *sides, heads=heads, kv_heads=1, past=False)
            y = convolution(t, y, "output.proj", width, 1)
        return add(t, layer_scale(t, y), x)


def layer_scale(t: Tape, x: Tensor) -> Tensor:
    """x times a learnt number per channel."""
    return t.op("layer_scale", (x,), x.shape, weights=(t.weight("layer_scale.gamma", (x.shape[-1],), "norm"),))
