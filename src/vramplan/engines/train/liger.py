"""Liger Kernel under transformers (`use_liger_kernel=True`): which of a model's ops its kernels replace, by transformers' model type.

Its losses are ops (ops/fused_loss.py). Not here: models whose experts, towers or layer norms it replaces too.
"""

from __future__ import annotations

from dataclasses import replace

from ...errors import Unknown
from ...kernels import Kernels

VERSION = "0.8.5"

IN_PLACE = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "phi3")
"""Norm, rotary embedding and gated MLP are Liger's; the norm's gradient is written in place."""
OUT_OF_PLACE = ("gemma2", "gemma3_text", "olmo2")
"""Likewise, but for the norm's gradient: a residual that needs its result's gradient follows the norm (`in_place=False`).

Source: Liger 0.8.5 `transformers/monkey_patch.py`, MODEL_TYPE_TO_APPLY_LIGER_FN, and `transformers/rms_norm.py`.
"""


def known(model_type: str) -> str:
    """`model_type`, if Liger's kernels for it are described here. Raises Unknown."""
    if model_type not in (*IN_PLACE, *OUT_OF_PLACE):
        raise Unknown(f"Liger Kernel is not described for model type {model_type!r}: there are {', '.join((*IN_PLACE, *OUT_OF_PLACE))}")
    return model_type


def kernels(model_type: str, native: Kernels) -> Kernels:
    """`native` kernels with those that Liger puts in their places."""
    if known(model_type) in IN_PLACE:
        return replace(native, norm="inplace", mlp="fused", rope="inplace")
    return replace(native, norm="triton", mlp="fused", rope="inplace")
