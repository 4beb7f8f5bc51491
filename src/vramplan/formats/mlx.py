"""MLX's quantised weights: linear layers, experts, embeddings and the head; norms and vision towers stay 16-bit.

Routers that are an nn.Linear (Qwen's) take 8 bits whatever the rest takes, as do gates of shared experts; DeepSeek's, which have a routing
bias, are none and stay. Source: mlx_lm's models (`quant_predicate`); sizes of mlx-community's checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..errors import BadInput
from . import Extra, Format, Scheme
from .config import integer
from .mx import MXFP4, MXFP8
from .packed import scales, words
from .patterns import Patterns
from .selective import Selective, take_options

if TYPE_CHECKING:
    from .gguf_facts import ModelFacts

NAMES = ("mlx",)
METHODS = ("mlx",)

GROUPS = (32, 64, 128)
BITS = (2, 3, 4, 5, 6, 8)

MODES = {
    "mxfp4": MXFP4,
    "mxfp8": MXFP8,
    "nvfp4": Format(name="nvfp4", block=2, block_bytes=1, extras=(Extra(what="scales", nbytes=1, tile=(1, 16)),)),
}
"""The modes beside `affine`: scales only, no biases. Source: mlx.core.quantize (mlx 0.29 and later)."""


def affine(bits: int = 4, group: int = 64) -> Format:
    """n·bits/8, and a 16-bit scale and a 16-bit bias per group along a row: bits + 32/g per weight.

    >>> affine().nbytes(4096, 4096) * 8 / 4096**2
    4.5

    Source: mlx.core.quantize; mlx_lm `convert` (4 bits, groups of 64).
    """
    if bits not in BITS or group not in GROUPS:
        raise BadInput(f"mlx {bits}-bit, groups of {group}: bits are one of {BITS}, groups one of {GROUPS}")
    elements, nbytes = words(bits)
    return Format(name=f"mlx {bits}-bit g{group}", block=elements, block_bytes=nbytes, extras=(scales(group), scales(group, what="biases")))


def scheme(name: str, options: list[str], dtype: str, facts: ModelFacts | None) -> Scheme:
    """`mlx-4bit`, `mlx-8bit-g32`, `mlx-mxfp4`, `mlx-nvfp4`, `mlx-mxfp8`."""
    if len(options) == 1 and options[0] in MODES:
        return _everywhere(f"mlx-{options[0]}", MODES[options[0]], dtype, router=_router(facts))
    found = take_options(name, options, bits=4, group=64)
    return _everywhere("-".join((name, *options)), affine(found["bits"] or 0, found["group"] or 0), dtype, router=_router(facts))


def _router(facts: ModelFacts | None) -> Format | None:
    return None if facts is not None and facts.routing_bias else affine(8, 64)


def _everywhere(
    name: str, form: Format, dtype: str, rules: tuple[tuple[Patterns, Format | None], ...] = (), router: Format | None = None
) -> Scheme:
    """Where the row's length is a multiple of the group; a matrix of another length stays."""
    rules = (*rules, (Patterns(["shared_expert_gate"], "transformers"), router or form))
    return Selective(name=name, linear=form, dtype=dtype, head=form, embed=form, router=router, rules=rules, columns=form.extras[0].tile[1])


def from_config(config: Mapping[str, object], dtype: str) -> Scheme:
    """`{"group_size", "bits", "mode"}`, and modules by name with an object of their own, or false for unquantised."""
    grouped: dict[Format | None, list[str]] = {}
    for module, own in config.items():
        if own is False:
            grouped.setdefault(None, []).append(module)
        elif isinstance(own, Mapping):
            grouped.setdefault(_form({**config, **own}), []).append(module)
    rules = tuple((Patterns(modules, "compressed-tensors"), form) for form, modules in grouped.items())
    return _everywhere("mlx", _form(config), dtype, rules)


def _form(config: Mapping[str, object]) -> Format:
    mode = config.get("mode", "affine")
    if isinstance(mode, str) and mode in MODES:
        return MODES[mode]
    if mode != "affine":
        raise BadInput(f"quantization: 'mode' is {str(mode)[:40]!r}; it is affine or one of {', '.join(MODES)}")
    return affine(integer(config.get("bits"), "bits", 4), integer(config.get("group_size"), "group_size", 64))
