"""Stand-ins for bitsandbytes' quantised layers, whose own parameters cannot hold fake tensors; the computing is bitsandbytes' own.

`Linear4bit` here holds a uint8 parameter and a real QuantState, and its forward is bitsandbytes' own; PEFT takes it for bitsandbytes'
class, of which it is one, and its parameter too, by the name of its class. What the CUDA kernels take inside themselves is in WORKSPACES,
from bitsandbytes 0.50.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import bitsandbytes as bnb
import torch
from bitsandbytes.autograd._functions import MatMul8bitLt
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from .recorder import Workspace

Args = tuple[Any, ...]
Lines = Iterable[tuple[str, int]]

BLOCK = 64
"""Weights that share a scale (bitsandbytes' default for CUDA)."""


class Params4bit(FakeTensor):
    """A packed weight, for whoever asks by the name of its class (PEFT does)."""


class Int8Params(FakeTensor):
    """An int8 weight, likewise."""


class Linear4bit(bnb.nn.Linear4bit):
    """A linear layer of `linear`'s shape with a 4-bit weight of `kind` nf4 or fp4, quantised from and computing in `compute`."""

    def __init__(self, linear: Any, kind: str, double: bool, compute: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = _sizes(linear)
        full = torch.empty(self.out_features, self.in_features, dtype=compute)
        packed, state = bnb.functional.quantize_4bit(full, blocksize=BLOCK, compress_statistics=double, quant_type=kind)
        weight: Any = nn.Parameter(packed, requires_grad=False)
        weight.quant_state, weight.compress_statistics, weight.quant_type = state, double, kind
        weight.__class__ = Params4bit
        self.weight = weight
        self.bias = linear.bias
        self.compute_dtype, self.compute_type_is_set = compute, True
        self.support_avx512bf16_for_cpu = False
        self.quant_state = state

    def __deepcopy__(self, memo: dict[int, Any]) -> Linear4bit:
        """PEFT copies the layer only to unpack the copy (DoRA's first norms)."""
        return self


def _sizes(linear: Any) -> tuple[int, int]:
    """Inputs and outputs of a Linear, or of a Conv1D, whose weight is stored as [in, out]."""
    return (linear.weight.shape[0], linear.weight.shape[1]) if isinstance(linear, Conv1D) else (linear.in_features, linear.out_features)


def quantize(model: Any, kind: str, *, double: bool, compute: torch.dtype) -> None:
    """Quantise the linear layers that `from_pretrained` with a BitsAndBytesConfig does; say so to PEFT as transformers does.

    Source: replace_with_bnb_linear, transformers 5.23 integrations/bitsandbytes.py: Linear and Conv1D, but the head and what is tied to it.
    """
    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    for name, module in list(model.named_modules()):
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, kept):
            made = Linear8bit(module) if kind == "int8" else Linear4bit(module, kind, double, compute)
            model.set_submodule(name, made)
    model.is_quantized = True
    model.is_loaded_in_8bit = kind == "int8"
    model.is_loaded_in_4bit = kind != "int8"
    for parameter in model.parameters():
        parameter.requires_grad = False


def states(model: Any) -> Iterable[tuple[str, Any]]:
    """(module, tensor) of the tensors of quantised layers that are no parameters: scales, their scales, the codebooks."""
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            state = module.weight.quant_state
            nested = state.state2
            own = (state.absmax, state.code, state.offset, *((nested.absmax, nested.code) if nested is not None else ()))
            yield from ((name, tensor) for tensor in own)
        elif isinstance(module, Linear8bit):
            yield name, module.scales


class Linear8bit(bnb.nn.Linear8bitLt):
    """LLM.int8(): an int8 weight and one fp32 scale for each row. Outlier columns, which depend on the data, are taken to be none."""

    def __init__(self, linear: Any) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = _sizes(linear)
        weight: Any = nn.Parameter(torch.empty(self.out_features, self.in_features, dtype=torch.int8), requires_grad=False)
        weight.has_fp16_weights = False
        weight.__class__ = Int8Params
        self.weight = weight
        self.scales = torch.empty(self.out_features, dtype=torch.float32)
        self.bias = linear.bias
        self.index = None
        self.state = bnb.MatmulLtState()
        self.state.has_fp16_weights = False
        self.state.threshold = 0.0
        self.state.CB, self.state.SCB = self.weight.data, self.scales

    def forward(self, x: Any) -> Any:
        """x: [batch, tokens, in] -> [batch, tokens, out], by the autograd function that bitsandbytes takes on CUDA."""
        if self.bias is not None and self.bias.dtype != x.dtype:
            self.bias.data = self.bias.data.to(x.dtype)
        return MatMul8bitLt.apply(x, self.weight, None, self.bias, self.state)


def _gemm_4bit(args: Args, kwargs: Mapping[str, Any], result: Any) -> Lines:
    """The weight in the compute dtype, and with double quantisation its scales twice; up to 64 rows a kernel without them.

    Source: _dequant_linear_fallback and its row limits, bitsandbytes 0.50 backends/cuda/ops.py.
    """
    x, shape = args[0], args[2]
    if x.numel() // x.shape[-1] > 64:
        elements = shape[0] * shape[1]
        if kwargs.get("absmax_8bit") is not None or (len(args) > 7 and args[7] is not None):
            yield "absmax", elements // args[4] * 4
            yield "absmax and offset", elements // args[4] * 4
        yield "dequantised weight", elements * x.element_size()


def _int8_product(args: Args, kwargs: Mapping[str, Any], result: Any) -> Lines:
    """The product in int32, and in fp16 where another dtype is asked for (int8_linear_matmul, int8_mm_dequant; the same file)."""
    yield "product in int32", result.numel() * 4
    if result.dtype is not torch.float16:
        yield "product in fp16", result.numel() * 2


def _int8_quantise(args: Args, kwargs: Mapping[str, Any], result: Any) -> Lines:
    """The search for outliers at the default threshold of 6: absolute values, and which pass it (int8_vectorwise_quant; same file)."""
    yield "absolute values", args[0].numel() * args[0].element_size()
    yield "outliers", args[0].numel()


def _int8_dequantise(args: Args, kwargs: Mapping[str, Any], result: Any) -> Lines:
    """The weight times its scales, before 1/127 (int8_vectorwise_dequant, bitsandbytes 0.50 _ops.py), which DoRA's norms ask for."""
    yield "scaled", result.numel() * 4


ops = torch.ops.bitsandbytes
WORKSPACES: dict[Any, Workspace] = {
    ops.gemm_4bit.default: _gemm_4bit,
    ops.int8_scaled_mm.default: _int8_product,
    ops.int8_vectorwise_quant.default: _int8_quantise,
    ops.int8_vectorwise_dequant.default: _int8_dequantise,
}
