"""PaliGemma: Gemma or Gemma 2 behind SigLIP and one linear layer.

Unusual: images and prompt, the prefix, all see each other; PaliGemma 2 slides in every other layer, as its text model does. An image is
resized to the tower's size (224, 448 or 896 pixels) and each of its patches is a token. Defaults: PaliGemmaConfig (transformers 5.23).
"""

from __future__ import annotations

from ..errors import BadInput
from ..ops import linear
from ..tape import Tape
from ..tensors import Tensor
from .config import Config
from .gemma import decoder
from .vision import siglip
from .vision_images import prefix_mask, scatter

MODEL_TYPES = ("paligemma",)

TEXT = {
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "vocab_size": 257152,
}
VISION = {
    "hidden_size": 1152,
    "image_size": 224,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}


def forward(t: Tape, c: Config) -> None:
    text, vision = c.sub("text_config"), c.sub("vision_config")
    kind = text.text("model_type", "gemma")
    if kind not in ("gemma", "gemma2"):
        raise BadInput(f"{text.path}: 'model_type' is {kind[:60]!r}; PaliGemma's text model is gemma or gemma2")
    tied = c.flag("tie_word_embeddings", True)
    text = Config({**({} if text.raw else TEXT), **text.raw, "model_type": kind, "tie_word_embeddings": tied}, text.path)
    vision = Config({**({"vision_use_head": False} if vision.raw else VISION), **vision.raw}, vision.path)
    width = c.size("projection_dim", 2048)

    def images(x: Tensor) -> Tensor:
        with t.aside():
            with t.tower("vision", runs=t.images > 0), t.module("vision_tower"):
                y = t.hold(siglip(t, vision))
            with t.tower("vision", part="projector", runs=t.images > 0), t.module("multi_modal_projector", y):
                y = linear(t, y, "linear", width, bias=True)
            return scatter(t, x, y)

    t.merging = images
    with t.module("language_model"):
        decoder(t, text, mask=lambda window: prefix_mask(t, window))
