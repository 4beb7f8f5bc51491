"""NVIDIA ModelOpt: NVFP4, FP8 and mixtures of both, with the modules that a checkpoint's config leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import BadInput, Unknown
from . import Extra, Format, Scheme
from .config import ListOfNames, left_out, mapping
from .fp8 import per_block, per_channel, per_tensor
from .mx import MXFP8
from .patterns import Patterns
from .selective import Selective, no_options

if TYPE_CHECKING:
    from .gguf_facts import ModelFacts

NAMES = ("nvfp4",)
METHODS = ("modelopt", "modelopt_fp4", "modelopt_mixed")


def nvfp4(*, activations: bool = True) -> Format:
    """n/2 + an E4M3 scale per 16 elements + an fp32 scale per matrix (+ one for its input): 4.5 bits and 8 bytes.

    >>> nvfp4().nbytes(4096, 4096) - 4096 * 4096 * 9 // 16
    8

    Source: ModelOpt's NVFP4 export (`weight_scale`, `weight_scale_2`, `input_scale`); vLLM `layers/quantization/modelopt.py`.
    """
    extras = [Extra(what="weight_scale", nbytes=1, tile=(1, 16)), Extra(what="weight_scale_2", nbytes=4)]
    if activations:
        extras.append(Extra(what="input_scale", nbytes=4))
    return Format(name="nvfp4", block=2, block_bytes=1, extras=tuple(extras))


ALGORITHMS = {
    "FP8": per_tensor(static=True),
    "FP8_PER_CHANNEL_PER_TOKEN": per_channel(),
    "FP8_PB_WO": per_block(),
    "NVFP4": nvfp4(),
    "W4A16_NVFP4": nvfp4(activations=False),
    "MXFP8": MXFP8,
}
"""`quant_algo` -> layout. Source: vLLM `layers/quantization/modelopt.py`, QUANT_ALGOS."""


def scheme(name: str, options: list[str], dtype: str, facts: ModelFacts | None) -> Scheme:
    """`nvfp4`: linear layers and experts; head, embedding, router and towers stay, as in NVIDIA's own checkpoints."""
    no_options(name, options)
    return Selective(name=name, linear=nvfp4(), dtype=dtype)


def from_config(config: Mapping[str, object], dtype: str) -> Scheme:
    """`quant_algo` with `ignore` (or `exclude_modules`); a mixture's `quantized_layers`, or experts in 4 bits where it names none.

    The older form keeps all that under `quantization` (hf_quant_config.json).
    """
    inner = mapping(config.get("quantization"), "quantization") or config
    names = ListOfNames.of(inner, "ignore", "exclude_modules")
    algorithm = str(inner.get("quant_algo")).upper()
    rules = left_out(names, "glob")
    towers = not names.cut_short
    if algorithm != "MIXED_PRECISION":
        form = _layout(algorithm)
        head = form if names.given and not names.cut_short else None
        return Selective(name="modelopt", linear=form, dtype=dtype, head=head, rules=rules, towers=towers, note=names.note)
    layers = mapping(inner.get("quantized_layers"), "quantized_layers")
    if layers:
        return Selective(name="modelopt", linear=None, dtype=dtype, rules=(*rules, *_by_layer(layers)), towers=towers, note=names.note)
    return _unnamed_mixture(inner, dtype, names)


def _layout(algorithm: str) -> Format:
    if algorithm not in ALGORITHMS:
        raise Unknown(f"quant_algo {algorithm[:40]!r} is not known; known are {', '.join(ALGORITHMS)} and MIXED_PRECISION")
    return ALGORITHMS[algorithm]


def _by_layer(layers: Mapping[str, object]) -> list[tuple[Patterns, Format | None]]:
    """One rule per algorithm, for the modules that it names."""
    grouped: dict[str, list[str]] = {}
    for module, entry in layers.items():
        grouped.setdefault(str(mapping(entry, "quantized_layers").get("quant_algo")).upper(), []).append(module)
    return [(Patterns(modules, "glob"), _layout(algorithm)) for algorithm, modules in grouped.items()]


def _unnamed_mixture(config: Mapping[str, object], dtype: str, names: ListOfNames) -> Scheme:
    """A mixture whose config does not say which layer takes what.

    With `moe_quant_algo`, or without any `config_groups`: experts NVFP4, the rest FP8. With both groups: all but attention NVFP4, the
    head too. So it is, to the element, in the published totals of MiniMax-M3-NVFP4, Qwen3.6-27B-NVFP4 and Qwen3.6-35B-A3B-NVFP4, which
    count a packed pair of weights as one.
    """
    block = config.get("weight_block_size")
    if block is not None and block != [128, 128]:
        raise BadInput(f"quantization_config: 'weight_block_size' is {str(block)[:40]}; a mixture takes [128, 128]")
    wide = per_block() if block else ALGORITHMS["FP8"]
    rules = left_out(names, "glob")
    if "moe_quant_algo" in config or "config_groups" not in config:
        note = "the checkpoint's config does not say which layers are 4-bit: experts are taken as NVFP4, other linear layers as FP8"
        linear, head = wide, None
    else:
        note = "the checkpoint's config does not say which layers are 4-bit: attention is taken as FP8, other linear layers as NVFP4"
        linear = head = nvfp4()
        rules = (*rules, (Patterns(["*attn*"], "glob"), wide), (Patterns(["*shared_expert_gate"], "glob"), None))
    note = f"{note}; {names.note}" if names.note else note
    return Selective(name="modelopt", linear=linear, experts=nvfp4(), dtype=dtype, head=head, rules=rules, note=note)
