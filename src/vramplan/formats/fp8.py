"""FP8 weights with a scale per matrix, per output row, or per square block (DeepSeek), and transformers' `fp8` configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import BadInput
from . import Extra, Format, Scheme
from .config import ListOfNames, integer, left_out
from .mx import MXFP4
from .selective import Selective

if TYPE_CHECKING:
    from .gguf_facts import ModelFacts

NAMES = ("fp8",)
METHODS = ("fp8", "fbgemm_fp8")


def per_tensor(*, static: bool = False) -> Format:
    """n + 4 bytes of `weight_scale`, fp32 (+ 4 of `input_scale` where activations have a static scale).

    Source: vLLM `layers/quantization/fp8.py` (`PerTensorScaleParameter`), ModelOpt's FP8 export.
    """
    extras = [Extra(what="weight_scale", nbytes=4)]
    if static:
        extras.append(Extra(what="input_scale", nbytes=4))
    return Format(name="fp8 per tensor", block=1, block_bytes=1, extras=tuple(extras))


def per_channel(scale_bytes: int = 4) -> Format:
    """n + a scale per output row: fp32 (vLLM, FBGEMM) or bf16 (compressed-tensors in a bf16 model)."""
    return Format(name="fp8 per channel", block=1, block_bytes=1, extras=(Extra(what="weight_scale", nbytes=scale_bytes, tile=(1, 0)),))


def per_block(rows: int = 128, cols: int = 128, scale_bytes: int = 4) -> Format:
    """n + an fp32 `weight_scale_inv` per block of `rows` × `cols`, partial blocks included.

    >>> per_block().nbytes(3072, 1024) - 3072 * 1024
    768

    Source: DeepSeek-V3 (arXiv 2412.19437, section 3.3.2) and its `weight_block_size`; the published totals of Qwen3-0.6B-FP8 (26,880
    scales) and DeepSeek-V3 (41,540,496) count them.
    """
    scale = Extra(what="weight_scale_inv", nbytes=scale_bytes, tile=(rows, cols))
    return Format(name=f"fp8 {rows}×{cols}", block=1, block_bytes=1, extras=(scale,))


def scheme(name: str, options: list[str], dtype: str, facts: ModelFacts | None) -> Scheme:
    """`fp8` (per tensor), `fp8-channel`, `fp8-block`: linear layers and experts; head, embedding, router and towers stay."""
    layouts = {"tensor": per_tensor(), "channel": per_channel(), "block": per_block()}
    option = options[0] if options else "tensor"
    if len(options) > 1 or option not in layouts:
        raise BadInput(f"weights 'fp8' has no option {'-'.join(options)[:30]!r}; options are {', '.join(layouts)}")
    return Selective(name="-".join((name, *options)), linear=layouts[option], dtype=dtype)


def from_config(config: Mapping[str, object], dtype: str) -> Scheme:
    """`quant_method: fp8` of transformers' FineGrainedFP8Config, and `fbgemm_fp8`. ModelOpt's mixed form is passed on.

    `expert_dtype: fp4` (DeepSeek-V4): experts in 4 bits with a one-byte scale per 32, the layout of MXFP4 (transformers
    `integrations/finegrained_fp8.py`, FP8Experts).
    """
    if "quant_algo" in config:
        from .modelopt import from_config as modelopt

        return modelopt(config, dtype)
    size = config.get("weight_block_size")
    if config.get("quant_method") == "fbgemm_fp8":
        form = per_channel()
    elif size is None:
        form = per_tensor(static=config.get("activation_scheme") == "static")
    elif isinstance(size, (list, tuple)) and len(size) == 2:
        form = per_block(integer(size[0], "weight_block_size"), integer(size[1], "weight_block_size"))
    else:
        raise BadInput(f"quantization_config: 'weight_block_size' is {str(size)[:40]}; it must be two integers")
    experts = config.get("expert_dtype", "fp8")
    if experts not in ("fp8", "fp4"):
        raise BadInput(f"quantization_config: 'expert_dtype' is {str(experts)[:40]!r}; it must be 'fp8' or 'fp4'")
    names = ListOfNames.of(config, "modules_to_not_convert", "ignored_layers")
    return Selective(
        name=str(config.get("quant_method")),
        linear=form,
        experts=MXFP4 if experts == "fp4" else None,
        dtype=dtype,
        head=form if names.given and not names.cut_short else None,
        rules=left_out(names, "transformers"),
        towers=not names.cut_short,
        note=names.note,
    )
