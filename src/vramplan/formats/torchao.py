"""torchao's weight-only and dynamic configurations of linear layers, as transformers saves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import BadInput, Unknown
from . import Extra, Format, Scheme
from .config import ListOfNames, integer, left_out, mapping
from .dtypes import float_format
from .fp8 import per_channel, per_tensor
from .packed import scales
from .selective import Selective, take_options

if TYPE_CHECKING:
    from .gguf_facts import ModelFacts

NAMES = ("nf4tensor",)
METHODS = ("torchao",)


def nf4tensor() -> Format:
    """n/2, an int8 scale per 64 elements, a 16-bit factor per 256 of these, their mean, and 16 codes in 16 bits.

    >>> nf4tensor().nbytes(2048, 2048)
    2163234

    Source: torchao 0.10 `dtypes/nf4tensor.py` NF4Tensor.from_tensor (block_size 64, scaler_block_size 256), of a bf16 weight.
    """
    return Format(
        name="NF4Tensor",
        block=2,
        block_bytes=1,
        extras=(
            Extra(what="scales", nbytes=1, tile=(0, 64), flat=True),
            Extra(what="factors", nbytes=2, tile=(0, 64 * 256), flat=True),
            Extra(what="mean and codes", nbytes=2 + 16 * 2),
        ),
    )


def scheme(name: str, options: list[str], dtype: str, facts: ModelFacts | None) -> Scheme:
    """`nf4tensor`: linear layers of the language model in torchtune's QLoRA; `-stacked` experts are not."""
    taken = take_options(name, options, stacked=0)
    experts = float_format(dtype) if taken["stacked"] else None
    return Selective(name=name, linear=nf4tensor(), experts=experts, dtype=dtype)


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
