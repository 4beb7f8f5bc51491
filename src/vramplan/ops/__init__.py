"""Ops: one short function each, saying what it reads, writes, keeps for backward and costs. Shapes are [b, s, width] unless said.

What a kernel keeps for backward is a fact that the op owns; where frameworks differ, the tape's `kernels` name the variant.
"""

from .attention import attention
from .linear import embed, head, linear
from .moe import experts, route
from .norm import layer_norm, rms_norm
from .pointwise import activation, add, dropout, gated, multiply, rope, sigmoid
from .recurrent import causal_conv, gated_delta_rule, selective_scan

__all__ = [
    "activation",
    "add",
    "attention",
    "causal_conv",
    "dropout",
    "embed",
    "experts",
    "gated",
    "gated_delta_rule",
    "head",
    "layer_norm",
    "linear",
    "multiply",
    "rms_norm",
    "rope",
    "route",
    "selective_scan",
    "sigmoid",
]
