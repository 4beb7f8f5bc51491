"""The names that people and libraries give to dtypes, and how many bytes an element takes."""

from __future__ import annotations

from functools import cache

from ..errors import NotFound, nearest
from . import Format

BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
"""Bytes of an element (torch `dtype.itemsize`)."""

ALIASES = {
    "float64": "fp64", "f64": "fp64", "double": "fp64",
    "float32": "fp32", "f32": "fp32", "float": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16", "f16": "fp16", "half": "fp16",
    "float8_e4m3fn": "fp8", "float8_e5m2": "fp8", "float8_e8m0fnu": "fp8", "f8_e4m3": "fp8", "f8_e5m2": "fp8", "f8_e8m0": "fp8",
    "e4m3": "fp8", "e5m2": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8",
}  # fmt: skip
"""What torch, safetensors and vLLM call them."""


def dtype_name(text: str) -> str:
    """Our name of a dtype: `torch.bfloat16`, `BF16` and `bfloat16` are `bf16`. Raises NotFound for an unknown one.

    >>> dtype_name("torch.bfloat16"), dtype_name("F32"), dtype_name("float8_e4m3fn")
    ('bf16', 'fp32', 'fp8')
    """
    name = text.lower().removeprefix("torch.")
    name = ALIASES.get(name, name)
    if name not in BYTES:
        raise NotFound(f"dtype {text[:60]!r} is not known{nearest(name[:60], BYTES)}; known are {', '.join(BYTES)}")
    return name


@cache
def float_format(dtype: str) -> Format:
    """The format of unquantised elements of `dtype`."""
    name = dtype_name(dtype)
    return Format(name=name, block=1, block_bytes=BYTES[name])
