"""LLaVA and Mistral 3: any text model behind CLIP's or Pixtral's tower and a projector of two linears.

Unusual: the checkpoint names the text model's weights `language_model.model…`, as if it had been saved alone. Mistral 3 merges 2 × 2
patches before the projector, and ties the head by default.
"""

from __future__ import annotations

from ..errors import BadInput
from ..ops import linear, rms_norm
from ..tape import Dim, Tape
from . import forward_of
from .config import Config
from .vision import two_layer_projector, vision_tower

MODEL_TYPES = ("llava", "mistral3")

MISTRAL3_TEXT = {
    "head_dim": 128,
    "hidden_size": 5120,
    "intermediate_size": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "vocab_size": 131072,
}
"""Mistral3Config's text model where the config names none (transformers 5.23 `models/mistral3/configuration_mistral3.py`)."""


def forward(t: Tape, c: Config) -> None:
    mistral = c.text("model_type") == "mistral3"
    text = c.sub("text_config")
    kind = text.text("model_type", "mistral" if mistral else "llama")
    if kind in MODEL_TYPES:
        raise BadInput(f"{text.path}: 'model_type' is {kind!r}; it must be a text model's")
    defaults = MISTRAL3_TEXT if mistral and not text.raw else {}
    tied = c.flag("tie_word_embeddings", mistral) or (not mistral and text.flag("tie_word_embeddings"))
    text = Config({**defaults, **text.raw, "model_type": kind, "tie_word_embeddings": tied}, text.path)

    with t.tower("vision"):
        with t.module("vision_tower"):
            x = vision_tower(t, c.sub("vision_config"), "pixtral" if mistral else "clip_vision_model")
        with t.module("multi_modal_projector", x):
            if mistral:
                x = rms_norm(t, x, "norm")
                unit = c.size("spatial_merge_size", 2) * c.size("spatial_merge_size", 2)
                merged = t.view(x, (Dim(1), x.shape[1] // unit, x.shape[-1] * unit))
                x = linear(t, merged, "patch_merger.merging_layer", x.shape[-1])
            taps = c.items("vision_feature_layer") if isinstance(c.raw.get("vision_feature_layer"), list) else None
            x = t.view(x, (*x.shape[:-1], x.shape[-1] * len(taps))) if taps else x
            hidden = text.size("hidden_size", label="hidden")
            two_layer_projector(t, x, hidden, bias=c.flag("multimodal_projector_bias", not mistral))
    with t.module("language_model"):
        forward_of(kind)(t, text)
