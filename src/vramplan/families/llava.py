"""LLaVA, LLaVA-NeXT and Mistral 3: any text model behind CLIP's, SigLIP's or Pixtral's tower and a projector of two linears.

Unusual: the checkpoint names the text model's weights `language_model.model…`, as if it had been saved alone. LLaVA takes a tower's hidden
states, by default those before its last layer, and leaves the class token out; NeXT cuts a picture into tiles (`anyres.py`). Mistral 3
merges 2 × 2 patches before the projector, and ties the head by default.
"""

from __future__ import annotations

from ..dim import Dim
from ..errors import BadInput, Unknown
from ..ops import linear, rms_norm
from ..tape import Tape
from ..tensors import Tensor
from . import forward_of
from .anyres import picture
from .config import Config
from .vision import clip, pixtral, siglip, two_layer_projector
from .vision_images import count, scatter, see

MODEL_TYPES = ("llava", "llava_next", "mistral3")

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
TOWERS = ("clip_vision_model", "siglip_vision_model", "pixtral")


def forward(t: Tape, c: Config) -> None:
    mistral = c.text("model_type") == "mistral3"
    text = c.sub("text_config")
    kind = text.text("model_type", "mistral" if mistral else "llama")
    if kind in MODEL_TYPES:
        raise BadInput(f"{text.path}: 'model_type' is {kind!r}; it must be a text model's")
    defaults = MISTRAL3_TEXT if mistral and not text.raw else {}
    tied = c.flag("tie_word_embeddings", mistral) or (not mistral and text.flag("tie_word_embeddings"))
    text = Config({**defaults, **text.raw, "model_type": kind, "tie_word_embeddings": tied}, text.path)
    hidden, seer = text.size("hidden_size", label="hidden"), tower_kind(c, mistral)

    def images(x: Tensor) -> Tensor:
        with t.aside():
            features = projected(t, c, t.hold(tower(t, c, seer, mistral)), hidden, mistral)
            return scatter(t, x, packed(t, features, hidden) if c.text("model_type") == "llava_next" else features)

    t.merging = images
    with t.module("language_model"):
        forward_of(kind)(t, text)


def tower_kind(c: Config, mistral: bool) -> str:
    """The tower's `model_type`. Raises BadInput for one that is not described here."""
    vision = c.sub("vision_config")
    kind = vision.text("model_type", "pixtral" if mistral else "clip_vision_model")
    if kind not in TOWERS:
        raise BadInput(f"{vision.path}: 'model_type' is {kind[:60]!r}; vision towers known here are {', '.join(TOWERS)}")
    return kind


def tower(t: Tape, c: Config, kind: str, mistral: bool) -> Tensor:
    """The hidden states that the projector gets: [images, patches, width]."""
    vision = c.sub("vision_config")
    classed = c.text("vision_feature_select_strategy", "default") != "default"
    if t.images and kind == "siglip_vision_model" and not classed:
        raise Unknown(
            f"{c.path}: 'vision_feature_select_strategy' leaves out a class token that SigLIP's tower does not have: not estimated"
        )
    taken = taps(t, c, vision, mistral)
    with t.tower("vision", runs=t.images > 0), t.module("vision_tower"):
        tiles = 1
        if c.text("model_type") == "llava_next":
            side, patch = (int(vision.size(key, default)) for key, default in (("image_size", 336), ("patch_size", 14)))
            if classed and t.images and kind == "clip_vision_model":
                raise Unknown(f"{c.path}: 'vision_feature_select_strategy' leaves a class token in each tile: not estimated")
            tiles = see(t, picture(c, t.image_size, side, side // patch)).pixels[0]
        if kind == "pixtral":
            return pixtral(t, vision, taken, int(c.size("spatial_merge_size", 2)) if mistral else 1)
        if kind == "siglip_vision_model":
            return siglip(t, vision, taps=taken, tiles=tiles)
        return clip(t, vision, taken, classed, tiles)


def taps(t: Tape, c: Config, vision: Config, mistral: bool) -> tuple[int, ...]:
    """The tower's hidden states that are taken. Raises BadInput for one that it does not have, Unknown where images take several."""
    depth = vision.layers(default=24 if mistral else 12)
    given = c.raw.get("vision_feature_layer", -1 if mistral else -2)
    taken = tuple(given) if isinstance(given, list) else (given,)
    for tap in taken:
        if isinstance(tap, bool) or not isinstance(tap, int) or not -depth - 1 <= tap <= depth:
            raise BadInput(
                f"{c.path}: 'vision_feature_layer' is {tap!r:.60}; the tower's hidden states are 0 to {depth}, or -1 for the last"
            )
    if not taken or (t.images and len(taken) > 1):
        raise Unknown(f"{c.path}: 'vision_feature_layer' names {len(taken)} layers: images are estimated for one")
    return taken


def projected(t: Tape, c: Config, x: Tensor, hidden: Dim, mistral: bool) -> Tensor:
    """[images, patches, width] -> [1, the images' tokens, hidden]; a part of the tower's output, without its class tokens, is copied."""
    several = c.raw.get("vision_feature_layer")
    with t.tower("vision", part="projector", runs=t.images > 0):
        with t.module("multi_modal_projector", x):
            if mistral:
                x = rms_norm(t, x, "norm")
                unit = c.size("spatial_merge_size", 2) * c.size("spatial_merge_size", 2)
                merged = t.op("patch_merger.unfolded", (x,), (Dim(1), x.shape[1] // unit, x.shape[-1] * unit))
                x = linear(t, merged, "patch_merger.merging_layer", x.shape[-1])
            elif x.base and t.images and x.shape[0] > 1:
                x = t.op("patches", (x,), x.shape)
            x = t.view(x, (*x.shape[:-1], x.shape[-1] * len(several))) if isinstance(several, list) else x
            x = two_layer_projector(t, x, hidden, bias=c.flag("multimodal_projector_bias", not mistral))
        return t.op("image_features", (x,), (Dim(1), x.shape[0] * x.shape[1], hidden))


def packed(t: Tape, x: Tensor, hidden: Dim) -> Tensor:
    """The features of tiles, [1, those of all tiles, hidden], put together to pictures: [1, tokens, hidden].

    A picture's tiles are laid side by side in a copy, padding is taken out and a column of the learnt token put behind in another; a third
    joins the whole picture's. All pictures' are then joined.
    """
    images, tokens = count(t), t.picture.tokens if t.picture else 1
    one = x.nbytes // int(images)
    with t.tower("vision", part="projector", runs=t.images > 0):
        newline = t.weight("image_newline", (hidden,), "norm")
        shape = Dim(1), Dim(images * tokens, "image tokens"), hidden
        each = t.op("packed", (x,), shape, weights=(newline,), workspace=2 * one, backward_workspace=2 * one)
        return t.op("pictures", (t.hold(each),), shape)
