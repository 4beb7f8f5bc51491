"""compressed-tensors, the format of llm-compressor: integers and floats of 4 and 8 bits, by groups of modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import BadInput, Unknown
from . import Extra, Format, Scheme
from .config import ListOfNames, integer, left_out, mapping
from .fp8 import per_block, per_channel, per_tensor
from .modelopt import nvfp4
from .mx import MXFP4, MXFP8
from .packed import scales, words, zero_points
from .patterns import Patterns
from .selective import Selective, take_options

if TYPE_CHECKING:
    from .gguf_facts import ModelFacts

NAMES = ("w4a16", "w8a16", "w8a8")
METHODS = ("compressed-tensors", "compressed_tensors", "sparseml")


def packed(bits: int, group: int, *, symmetric: bool = True) -> Format:
    """`pack-quantized`: n·bits/8 in int32 words, 16-bit scales per group (0: per row), zero points where asymmetric.

    >>> packed(4, 128).nbytes(4096, 4096) * 8 / 4096**2
    4.125

    Source: compressed-tensors `compressors/quantized_compressors/pack_quantized.py` (weight_packed, weight_scale, weight_zero_point; the
    16 bytes of weight_shape stand in the file only).
    """
    elements, nbytes = words(bits)
    shape = Extra(what="weight_shape", nbytes=16, loaded=False)
    extras = (scales(group), shape) if symmetric else (scales(group), zero_points(bits, group), shape)
    return Format(name=f"w{bits}a16 g{group or 'in'}", block=elements, block_bytes=nbytes, extras=extras)


def integers(scale_bytes: int = 4) -> Format:
    """`int-quantized`, W8A8: n + a scale per output row: fp32 in memory (vLLM), the model's 16 bits in llm-compressor's files."""
    return Format(name="w8a8", block=1, block_bytes=1, extras=(scales(0, scale_bytes),))


def scheme(name: str, options: list[str], dtype: str, facts: ModelFacts | None) -> Scheme:
    """`w4a16`, `w4a16-g32` (groups of 128 unless said), `w8a16` (per row unless said), `w8a8`."""
    if name == "w8a8":
        take_options(name, options)
        return Selective(name=name, linear=integers(), dtype=dtype)
    found = take_options(name, options, group=128 if name == "w4a16" else 0, asym=0)
    form = packed(int(name[1]), found["group"] or 0, symmetric=not found["asym"])
    return Selective(name="-".join((name, *options)), linear=form, dtype=dtype)


def from_config(config: Mapping[str, object], dtype: str) -> Scheme:
    """`config_groups` with their `targets`, and `ignore`. A group that targets a class of modules (Linear) takes what no other names."""
    names = ListOfNames.of(config, "ignore")
    rules = list(left_out(names, "compressed-tensors"))
    everywhere: Format | None = None
    for key, entry in mapping(config.get("config_groups"), "config_groups").items():
        group = mapping(entry, key)
        form = layout(mapping(group.get("weights"), "weights"), str(group.get("format") or config.get("format") or ""), group)
        targets = group.get("targets") or ["Linear"]
        if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
            raise BadInput("quantization_config: 'targets' must be a list of strings")
        modules = [t for t in targets if t not in ("Linear", "FusedMoE", "MoEGate")]
        if len(modules) < len(targets):
            everywhere = form
        if modules:
            rules.append((Patterns(modules, "compressed-tensors"), form))
    if everywhere is None and not rules:
        raise BadInput("quantization_config: compressed-tensors without 'config_groups'")
    return Selective(
        name="compressed-tensors",
        linear=everywhere,
        dtype=dtype,
        head=None if names.cut_short else everywhere,
        rules=tuple(rules),
        towers=not names.cut_short,
        note=names.note,
    )


def layout(weights: Mapping[str, object], form: str, group: Mapping[str, object]) -> Format:
    """The layout of one group's `weights`: QuantizationArgs (num_bits, type, strategy, group_size, symmetric)."""
    bits, kind = integer(weights.get("num_bits"), "num_bits", 8), weights.get("type", "int")
    size = max(0, integer(weights.get("group_size"), "group_size", -1, least=-1))
    strategy = weights.get("strategy") or ("group" if size else "tensor")
    static = mapping(group.get("input_activations"), "input_activations").get("dynamic") is False
    if kind == "float" and bits == 4:
        return MXFP4 if "mxfp4" in form or size == 32 else nvfp4(activations=bool(group.get("input_activations")))
    if kind == "float" and bits == 8:
        if strategy == "block":
            shape = weights.get("block_structure") or [128, 128]
            if not isinstance(shape, list) or len(shape) != 2:
                raise BadInput(f"quantization_config: 'block_structure' is {str(shape)[:40]}; it must be two integers")
            return per_block(integer(shape[0], "block_structure"), integer(shape[1], "block_structure"), scale_bytes=2)
        if size == 32:
            return MXFP8
        return per_channel(2) if strategy == "channel" else per_tensor(static=static)
    if kind == "int" and form == "pack-quantized":
        return packed(bits, size if strategy == "group" else 0, symmetric=weights.get("symmetric") is not False)
    if kind == "int" and bits == 8:
        return integers(2)
    if kind == "int":
        return packed(bits, size if strategy == "group" else 0, symmetric=weights.get("symmetric") is not False)
    raise Unknown(f"compressed-tensors with {bits}-bit {str(kind)[:20]!r} weights is not known; known are int, and float of 4 and 8 bits")
