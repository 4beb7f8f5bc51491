"""AMD Quark's configs: one `global_quant_config` for linear layers, `exclude` lists, and overrides by layer."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import Unknown
from . import Format, Scheme
from .config import ListOfNames, integer, left_out, mapping
from .fp8 import per_channel, per_tensor
from .mx import MXFP4, MXFP8
from .packed import scales, words
from .patterns import Patterns
from .selective import Selective

METHODS = ("quark",)


def from_config(config: Mapping[str, object], dtype: str) -> Scheme:
    """Source: vLLM `layers/quantization/quark/quark.py`: `exclude`, then `layer_quant_config` by glob, then the global one."""
    names = ListOfNames.of(config, "exclude")
    rules = [*left_out(names, "compressed-tensors"), *left_out(names, "glob")]
    for pattern, entry in mapping(config.get("layer_quant_config"), "layer_quant_config").items():
        rules.append((Patterns([pattern], "glob"), _layout(mapping(entry, "layer_quant_config"))))
    form = _layout(mapping(config.get("global_quant_config"), "global_quant_config"))
    head = form if names.given and not names.cut_short else None
    return Selective(name="quark", linear=form, dtype=dtype, head=head, rules=tuple(rules), towers=not names.cut_short, note=names.note)


def _layout(config: Mapping[str, object]) -> Format:
    weight = mapping(config.get("weight"), "weight")
    kind, scheme = str(weight.get("dtype")), str(weight.get("qscheme"))
    group = integer(weight.get("group_size"), "group_size", 32)
    static = mapping(config.get("input_tensors"), "input_tensors").get("is_dynamic") is False
    match kind:
        case "fp8_e4m3" if scheme == "per_channel":
            return per_channel()
        case "fp8_e4m3" if scheme == "per_group":
            return MXFP8
        case "fp8_e4m3":
            return per_tensor(static=static)
        case "fp4" if group == 32:
            return MXFP4
        case "int8":
            return Format(name="int8", block=1, block_bytes=1, extras=(scales(0 if scheme == "per_channel" else group, 4),))
        case "int4" | "uint4":
            elements, nbytes = words(4)
            return Format(name=f"int4 g{group}", block=elements, block_bytes=nbytes, extras=(scales(group),))
    raise Unknown(f"quark weights of {kind[:20]!r}, {scheme[:20]!r} are not known; known are fp8_e4m3, fp4 in groups of 32, int8, int4")
