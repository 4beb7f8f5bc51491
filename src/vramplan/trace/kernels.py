"""The operators that a CUDA GPU would run, for fake tensors that say they are on the CPU.

Where PyTorch's own code asks "is this tensor on CUDA?", fake CPU tensors get the CPU's answer. The few operators where that changes what
is kept or allocated are registered anew here, for the CPU's dispatch keys, as long as a trace runs: attention, dropout, softmax in fp16,
`rms_norm`, and the operators that autocast runs in fp32 on CUDA only. It knows PyTorch 2.13's CUDA build with its default settings;
it does not know ROCm, and it takes no notice of `torch.nn.attention.sdpa_kernel`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import _meta_registrations

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)

FP32_UNDER_AUTOCAST = (
    *("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh", "tan"),
    *("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar", "softplus", "layer_norm", "native_layer_norm", "rms_norm", "group_norm"),
    *("cosine_similarity", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss", "binary_cross_entropy_with_logits"),
    *("dist", "cdist", "renorm", "logsumexp"),
)
"""Of AT_FORALL_FP32 in ATen/autocast_mode.h, 2.13: the operators that language models use and CPU autocast does not already cast."""
FP32_RESULT_UNDER_AUTOCAST = {
    "prod": 0,
    "prod.dim_int": 2,
    "softmax.int": 1,
    "log_softmax.int": 1,
    "cumprod": 1,
    "cumsum": 1,
    "linalg_vector_norm": 3,
    "sum": 0,
    "sum.dim_IntList": 2,
}
"""AT_FORALL_FP32_SET_OPT_DTYPE there: they compute in fp32 by their `dtype` argument; the number counts the positional ones before it."""


def attention_kernel(
    query: Any, key: Any, value: Any, mask: Any, *, dropout: float, causal: bool, capability: tuple[int, int], enable_gqa: bool = False
) -> str:
    """The kernel that `scaled_dot_product_attention` takes on a GPU of `capability`: "cudnn", "flash", "efficient" or "math".

    query: [batch, heads, tokens, head_dim]. After select_sdp_backend, priority_order and the can_use_… functions of
    aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (main of 2026, cuDNN later than 9.22); heads that are only broadcast go to "math"
    (check_batch_size_and_num_heads_dense, sdp_utils_cpp.h).
    """
    head_dim, value_dim = query.shape[-1], value.shape[-1]
    ampere = capability >= (8, 0)
    trains = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
    half = query.dtype in HALF if ampere else query.dtype is torch.float16
    heads = enable_gqa or query.shape[1] == key.shape[1] == value.shape[1]
    four = heads and query.dim() == 4 and all(t.stride(-1) == 1 for t in (query, key, value)) and query.shape[2] > 0 and key.shape[2] > 0
    if four and half and capability[0] in (9, 10) and head_dim % 8 == value_dim % 8 == 0 and dropout * 16 % 1 == 0 and key.shape[2] > 1:
        sizes = (head_dim, value_dim)
        if max(sizes) <= 128 or sizes in ((192, 128), (256, 256)) or (not trains and max(sizes) <= 256):
            return "cudnn"
    if four and half and ampere and mask is None and head_dim == key.shape[-1] == value_dim <= 256:
        small = (8, 6) <= capability <= (8, 9) or capability[0] == 12
        backward = not (trains and small) or head_dim <= 192 or (dropout == 0 and head_dim > 224)
        if backward and (not causal or query.shape[2] == key.shape[2]):
            return "flash"
    bits = 16 if query.dtype in HALF else 32
    tensor_cores = ampere or (capability >= (7, 0) and bits == 16)
    alignment = max(4 if ampere else 1, 128 // bits if tensor_cores else 1)
    dtypes = (torch.float16, torch.float32, torch.bfloat16) if ampere else (torch.float16, torch.float32)
    if four and query.dtype in dtypes and head_dim % alignment == value_dim % alignment == 0 and head_dim == key.shape[-1]:
        return "efficient"
    return "math"


def attention(capability: tuple[int, int], note: Callable[[str], None]) -> Callable[..., Any]:
    """`scaled_dot_product_attention` as a GPU of `capability` runs it, by the chosen kernel's own operator; tells `note` which it took."""

    def run(
        q: Any, k: Any, v: Any, mask: Any = None, p: float = 0.0, causal: bool = False, *, scale: Any = None, enable_gqa: bool = False
    ) -> Any:
        kernel = attention_kernel(q, k, v, mask, dropout=p, causal=causal, capability=capability, enable_gqa=enable_gqa)
        note(kernel)
        trains = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
        if kernel == "math":
            return aten._scaled_dot_product_attention_math(q, k, v, mask, p, causal, None, scale=scale, enable_gqa=enable_gqa)[0]
        if mask is not None and mask.dtype is torch.bool:
            mask = torch.where(mask, 0.0, torch.full((), -math.inf, dtype=q.dtype, device=q.device))
        if kernel == "cudnn":
            return aten._scaled_dot_product_cudnn_attention(q, k, v, mask, trains, p, causal, False, scale=scale)[0]
        if kernel == "flash":
            width = q.shape[-1]
            scale = 1 / math.sqrt(width) if scale is None else scale
            out = aten._scaled_dot_product_flash_attention(*(_padded(t, 8) for t in (q, k, v)), p, causal, False, scale=scale)[0]
            return out[..., :width] if out.shape[-1] != width else out
        if k.shape[1] != q.shape[1]:
            k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
        if mask is not None:
            mask = _padded(mask, 16)[..., : mask.shape[-1]].expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        return aten._scaled_dot_product_efficient_attention(q, k, v, mask, trains, p, causal, scale=scale)[0]

    return run


def _padded(tensor: Any, to: int) -> Any:
    missing = -tensor.shape[-1] % to
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor


def _dropout(tensor: Any, p: float, train: bool) -> Any:
    """On CUDA a fused kernel that keeps a mask of one byte per element (is_fused_kernel_acceptable, aten/native/Dropout.cpp)."""
    return aten.native_dropout(tensor, p, True)[0] if train and 0 < p < 1 else tensor


def _softmax(operator: Any, plain: Any) -> Callable[..., Any]:
    """On CUDA fp16 becomes fp32 inside the kernel; other dtypes are converted in a copy first (aten/native/SoftMax.cpp)."""

    def run(tensor: Any, dim: int, dtype: Any = None) -> Any:
        if tensor.dtype is torch.float16 and dtype is torch.float32:
            return operator(tensor, dim, True)
        return plain(tensor if dtype is None else tensor.to(dtype), dim, False)

    return run


class _FusedRmsNorm(torch.autograd.Function):
    """`_fused_rms_norm` as on CUDA: x, the weight and a reciprocal root per row are kept; on a CPU it is composed of several operators."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, dims: int) -> Any:
        rstd = x.new_empty((*x.shape[:-dims], *(1,) * dims), dtype=torch.float32)
        ctx.save_for_backward(x, weight, rstd)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight) if ctx.needs_input_grad[1] else None, None


def _rms_norm(tensor: Any, shape: Any, weight: Any = None, eps: Any = None) -> Any:
    """On CUDA one fused kernel, where weight and input are of one dtype; else step by step in fp32 (aten/native/layer_norm.cpp)."""
    if weight is None or weight.dtype == tensor.dtype:
        return _FusedRmsNorm.apply(tensor, weight, len(shape))
    wide = tensor.to(torch.float32)
    scale = wide.pow(2).mean(list(range(-len(shape), 0)), keepdim=True).add_(eps or torch.finfo(torch.float32).eps).rsqrt()
    return ((wide * scale) * weight).to(tensor.dtype)


def _fp32(operator: Any) -> Callable[..., Any]:
    """Autocast's fp32 policy: floating-point arguments in fp32 (autocast_mode.h, CastPolicy::fp32)."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with _without_autocast():
            return operator(*(_to_fp32(a) for a in args), **{k: _to_fp32(a) for k, a in kwargs.items()})

    return run


def _fp32_result(operator: Any, before: int) -> Callable[..., Any]:
    """Autocast's policy fp32_set_opt_dtype: a result in fp32, where half precision comes in and no dtype is asked for."""

    def run(*args: Any, **kwargs: Any) -> Any:
        wanted = kwargs.get("dtype", args[before + 1] if len(args) > before + 1 and isinstance(args[before + 1], torch.dtype) else None)
        with _without_autocast():
            if wanted is None and args[0].dtype in HALF:
                kwargs = {**kwargs, "dtype": torch.float32}
                args = args[: before + 1]
            return operator(*args, **kwargs)

    return run


def _to_fp32(value: Any) -> Any:
    return value.to(torch.float32) if isinstance(value, torch.Tensor) and value.dtype in HALF else value


def _without_autocast() -> Any:
    return torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU))


def _grouped(meta: Any) -> Callable[..., Any]:
    """Grouped products of other dtypes than bf16, which CUDA computes group by group and the meta function knows only in bf16.

    Source: _grouped_mm_cuda, aten/src/ATen/native/cuda/GroupedBlas.cpp, and _grouped_mm_fallback, aten/src/ATen/native/GroupedMMUtils.h.
    """

    def run(mat_a: Any, mat_b: Any, scale_a: Any, scale_b: Any, offs: Any = None, *args: Any, **kwargs: Any) -> Any:
        if scale_a is None and mat_a.dtype is mat_b.dtype in (torch.float16, torch.float32):
            made = meta(mat_a.to(torch.bfloat16), mat_b.to(torch.bfloat16), None, None, offs)
            return torch.empty(made.shape, dtype=mat_a.dtype, device=made.device)
        return meta(mat_a, mat_b, scale_a, scale_b, offs, *args, **kwargs)

    return run


def _overload(name: str) -> Any:
    base, _, overload = name.partition(".")
    return getattr(getattr(aten, base), overload or "default")


@contextmanager
def cuda_operators(capability: tuple[int, int], note: Callable[[str], None]) -> Iterator[None]:
    """As long as it lasts, CPU tensors run what CUDA tensors run on a GPU of `capability`."""
    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("scaled_dot_product_attention", attention(capability, note), "AutogradCPU")
        library.impl("dropout", _dropout, "AutogradCPU")
        library.impl("softmax.int", _softmax(aten._softmax, aten._softmax), "AutogradCPU")
        library.impl("log_softmax.int", _softmax(aten._log_softmax, aten._log_softmax), "AutogradCPU")
        if hasattr(aten, "_fused_rms_norm"):
            library.impl("rms_norm", _rms_norm, "AutogradCPU")
        for name in FP32_UNDER_AUTOCAST:
            library.impl(name, _fp32(_overload(name)), "AutocastCPU")
        for name, before in FP32_RESULT_UNDER_AUTOCAST.items():
            library.impl(name, _fp32_result(_overload(name), before), "AutocastCPU")
        with mock.patch.object(_meta_registrations, "_meta_grouped_mm_common", _grouped(_meta_registrations._meta_grouped_mm_common)):
            yield
    finally:
        library._destroy()
