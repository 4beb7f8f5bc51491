"""torchao's weight-only and dynamic configurations of linear layers, as transformers saves them."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import BadInput, Unknown
from . import Extra, Format, Scheme
from .config import ListOfNames, integer, left_out, mapping
from .fp8 import per_channel, per_tensor
from .packed import scales
from .selective import Selective

METHODS = ("torchao",)


def int4(group: int = 128) -> Format:
    """n/2, and a 16-bit scale and zero point per group. Source: torchao `Int4WeightOnlyConfig` (tinygemm's `scales_and_zeros`)."""
    return Format(name=f"int4 g{group}", block=2, block_bytes=1, extras=(Extra(what="scales and zeros", nbytes=4, tile=(1, group)),))


def int8(scale_bytes: int = 2) -> Format:
    """n, and a scale per output row in the model's dtype. Source: torchao `Int8WeightOnlyConfig`."""
    return Format(name="int8 per channel", block=1, block_bytes=1, extras=(scales(0, scale_bytes),))


def from_config(config: Mapping[str, object], dtype: str) -> Scheme:
    """`quant_type`: the older string (`int4_weight_only`) or the newer object ({"default": {"_type": "Int4WeightOnlyConfig", …}})."""
    kind = config.get("quant_type")
    options = mapping(config.get("quant_type_kwargs"), "quant_type_kwargs")
    if isinstance(kind, Mapping):
        entry = mapping(kind.get("default"), "quant_type")
        kind, options = entry.get("_type"), mapping(entry.get("_data"), "quant_type")
    names = ListOfNames.of(config, "modules_to_not_convert")
    form = _layout(str(kind), options)
    return Selective(name="torchao", linear=form, dtype=dtype, rules=left_out(names, "transformers"), note=names.note)


def _layout(kind: str, options: Mapping[str, object]) -> Format:
    key = kind.lower().replace("_", "").removesuffix("config")
    match key:
        case "int4weightonly" | "int8dynamicactivationint4weight" | "float8dynamicactivationint4weight":
            return int4(integer(options.get("group_size"), "group_size", 128))
        case "int8weightonly" | "int8dynamicactivationint8weight":
            return int8()
        case "float8weightonly" | "float8dynamicactivationfloat8weight" | "float8staticactivationfloat8weight":
            granularity = str(options.get("granularity", ""))
            return per_channel() if key == "float8weightonly" or "PerRow" in granularity else per_tensor()
        case "none":
            raise BadInput("quantization_config: torchao without 'quant_type'")
    raise Unknown(
        f"torchao quant_type {kind[:40]!r} is not known; known are int4, int8 and float8, weight-only or with dynamic activations"
    )
