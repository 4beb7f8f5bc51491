"""GPTQ and what writes its layout (GPTQModel, AutoRound), and AWQ: linear layers and experts, head only where the config says so.

Engines repack at load: Marlin kernels drop the zero points and `g_idx` of symmetric GPTQ weights; both stand in the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from . import Extra, Format, Scheme
from .config import ListOfNames, integer, left_out, mapping
from .packed import scales, words, zero_points
from .patterns import Patterns
from .selective import Selective, take_options

if TYPE_CHECKING:
    from .gguf_facts import ModelFacts

NAMES = ("gptq", "awq")
METHODS = ("gptq", "gptqmodel", "awq", "auto-round", "auto_round", "intel/auto-round")


def gptq(bits: int = 4, group: int = 128, *, symmetric: bool = True) -> Format:
    """qweight n·bits/8, fp16 scales and packed zero points per group, an int32 `g_idx` per input column; a group of 0 is a whole column.

    >>> gptq().nbytes(4096, 4096, stored=True), gptq().nbytes(4096, 4096)
    (8732672, 8650752)

    Source: AutoGPTQ `QuantLinear` buffers (qweight, qzeros, scales, g_idx); vLLM `gptq_marlin.py` (symmetric weights keep qweight and
    scales). bits + (16 + bits)/g + 32/out per weight in the file, bits + 16/g in memory.
    """
    elements, nbytes = words(bits)
    extras = (
        scales(group),
        zero_points(bits, group, loaded=not symmetric),
        Extra(what="g_idx", nbytes=4, tile=(0, 1), loaded=not symmetric),
    )
    return Format(name=f"gptq {bits}-bit g{group or 'in'}", block=elements, block_bytes=nbytes, extras=extras)


def awq(bits: int = 4, group: int = 128, *, zero_point: bool = True) -> Format:
    """qweight n·bits/8, fp16 scales and packed zero points per group; no g_idx.

    >>> awq().nbytes(4096, 4096) * 8 / 4096**2
    4.15625

    Source: AutoAWQ `WQLinear_GEMM` buffers: qweight int32 [in, out/8], qzeros [in/g, out/8], scales fp16 [in/g, out].
    """
    elements, nbytes = words(bits)
    extras = (scales(group), zero_points(bits, group)) if zero_point else (scales(group),)
    return Format(name=f"awq {bits}-bit g{group or 'in'}", block=elements, block_bytes=nbytes, extras=extras)


def scheme(name: str, options: list[str], dtype: str, facts: ModelFacts | None) -> Scheme:
    """`gptq`, `gptq-8bit`, `gptq-4bit-g32`, `gptq-asym`; `awq`, `awq-g64`. 4 bits in groups of 128 unless said."""
    flags = {"asym": 0} if name == "gptq" else {}
    found = take_options(name, options, bits=4, group=128, **flags)
    bits, group = found["bits"] or 0, found["group"] or 0
    form = awq(bits, group) if name == "awq" else gptq(bits, group, symmetric=not found["asym"])
    return Selective(name="-".join((name, *options)), linear=form, dtype=dtype)


def from_config(config: Mapping[str, object], dtype: str) -> Scheme:
    """The configs of transformers' GPTQConfig and AwqConfig, GPTQModel's `dynamic` overrides and AutoRound's `extra_config`."""
    method = str(config.get("quant_method")).lower()
    as_awq = method == "awq" or "awq" in str(config.get("packing_format", config.get("backend", "")))
    base = _form(config, as_awq)
    names = ListOfNames.of(config, "modules_to_not_convert")
    rules = [*left_out(names, "transformers"), *_dynamic(config, as_awq), *_extra(config, as_awq)]
    head = base if config.get("lm_head") is True else None
    return Selective(name=method, linear=base, dtype=dtype, head=head, rules=tuple(rules), note=names.note)


def _form(config: Mapping[str, object], as_awq: bool) -> Format:
    bits = integer(config.get("bits", config.get("w_bit")), "bits", 4)
    group = integer(config.get("group_size", config.get("q_group_size")), "group_size", 128, least=-1)
    group = max(group, 0)  # -1: the whole column
    if as_awq:
        return awq(bits, group, zero_point=config.get("zero_point") is not False)
    return gptq(bits, group, symmetric=config.get("sym") is not False)


def _dynamic(config: Mapping[str, object], as_awq: bool) -> list[tuple[Patterns, Format | None]]:
    """GPTQModel: a regular expression after `-:` leaves modules out, after `+:` or nothing overrides bits and group."""
    rules: list[tuple[Patterns, Format | None]] = []
    for key, override in mapping(config.get("dynamic"), "dynamic").items():
        if key.startswith("-:"):
            rules.append((Patterns([key[2:]], "regex"), None))
        else:
            rules.append((Patterns([key.removeprefix("+:")], "regex"), _form({**config, **mapping(override, "dynamic")}, as_awq)))
    return rules


def _extra(config: Mapping[str, object], as_awq: bool) -> list[tuple[Patterns, Format | None]]:
    """AutoRound: modules by name with bits of their own; 16 and more are unquantised."""
    grouped: dict[tuple[object, object, object], list[str]] = {}
    for key, override in mapping(config.get("extra_config"), "extra_config").items():
        own = mapping(override, "extra_config")
        merged = {**config, **own}
        grouped.setdefault((merged.get("bits"), merged.get("group_size"), merged.get("sym")), []).append(key)
    rules: list[tuple[Patterns, Format | None]] = []
    for (bits, group, sym), modules in grouped.items():
        wide = integer(bits, "bits", 4) >= 16
        form = None if wide else _form({"bits": bits, "group_size": group, "sym": sym}, as_awq)
        rules.append((Patterns(modules, "transformers"), form))
    return rules
