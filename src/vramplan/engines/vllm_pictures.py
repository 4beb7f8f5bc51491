"""The picture that vLLM's profile run is made of: each model's largest by its own code, and what the encoder takes for it.

Where a family describes a picture of the usual size, that is the one. Kimi-VL's and LLaVA-NeXT's are vLLM's choice. What it does not know:
pictures of a family that describes none (Llama 4's), and the encoder's peak for Kimi-VL's and LLaVA-NeXT's.
Sources: vLLM 0.19.0 model_executor/models/kimi_vl.py (MaxImageTokenMeta, get_num_image_tokens) and llava_next.py
(get_image_size_with_most_features).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

from ..dim import Dim
from ..errors import Unknown
from ..families import walk
from ..families.anyres import picture, pinpoints
from ..families.config import Config
from ..kernels import Kernels
from ..sources.model import Model
from ..tape import Tape
from ..tensors import Picture

TOKENS = 64 * 1024
"""Of the sequence that a picture is looked at in: more than any takes."""
KIMI_SIDE, KIMI_PATCHES = 1024, 4096
"""Kimi-VL's picture is so wide and high, and has so many patches at most: `in_token_limit`, its preprocessor_config.json."""


@lru_cache(maxsize=64)
def profiled(model: Model, kernels: Kernels) -> tuple[Picture | None, int]:
    """What one picture is to the model, and the encoder's peak for it; None where nothing says it. A model is found once."""
    vision = model.config.get("vision_config")
    if isinstance(vision, Mapping) and model.config.get("model_type") == "kimi_vl":
        return _kimi(_size(vision, "patch_size", 14)), 0
    if isinstance(vision, Mapping) and model.config.get("model_type") == "llava_next":
        return _tiles(model.config, vision), 0
    tape = Tape(Dim(1, "sequences"), Dim(TOKENS, "tokens"), kernels=kernels)
    tape.images = 1
    try:
        walk(tape, model.config, model.id)
    except Unknown:
        return None, 0
    return tape.picture, tape.peak("vision")[0] if tape.picture and "vision" in tape.towers else 0


def _size(config: Mapping[str, object], key: str, default: int) -> int:
    value = config.get(key)
    return value if isinstance(value, int) else default


def _kimi(patch: int) -> Picture:
    """Scaled down to its most patches, then up to whole groups of 2 × 2, each a token."""
    shrink = min(math.sqrt(KIMI_PATCHES) / (KIMI_SIDE // patch), 1)
    groups = -(-int(KIMI_SIDE * shrink) // (2 * patch))
    return Picture(pixels=(4 * groups * groups, 3, patch, patch), grid=(2 * groups, 2 * groups), tokens=groups * groups)


def _tiles(config: Mapping[str, object], vision: Mapping[str, object]) -> Picture:
    """Of the sizes that a picture may be brought to, and has no padding in, the one with most tokens."""
    side, patch = _size(vision, "image_size", 336), _size(vision, "patch_size", 14)
    named = Config(config)
    return max((picture(named, size, side, side // patch) for size in pinpoints(named)), key=lambda one: one.tokens)
