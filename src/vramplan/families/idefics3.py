"""Idefics3 and SmolVLM: Llama behind a SigLIP tower that sees an image as square tiles and, once more, whole.

Unusual: the longest side is brought to four tiles, whatever it was, so that a square image is 17 tiles; each is a sequence of its own to
the tower, whose `scale_factor` × `scale_factor` patches become one token. Tokens that name a tile's row and column are text.
Source: transformers 5.23 `models/idefics3`, `models/smolvlm`.
"""

from __future__ import annotations

import math

from ..dim import Dim
from ..errors import BadInput
from ..ops import layer_norm, linear
from ..ops.workspaces import embedding_backward
from ..tape import Tape
from ..tensors import Picture, Tensor
from . import llama
from .config import Config
from .vision import encoder, encoder_layer, patch_grid, sizes
from .vision_images import asked_of_inputs, convolved, given, pixel_values, scatter, see

MODEL_TYPES = ("idefics3", "smolvlm")

ACROSS = 4
"""Tiles along the longest side: `size` over `max_image_size` in preprocessor_config.json of Idefics3-8B-Llama3, SmolVLM and SmolVLM2."""
MADE_FOR = (1024, 1024)
TEXT = {"rms_norm_eps": 1e-5, "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}
TEXT |= {"num_hidden_layers": 32, "vocab_size": 32000}
"""The text model where the config names none: LlamaConfig."""


def forward(t: Tape, c: Config) -> None:
    text, vision = c.sub("text_config"), c.sub("vision_config")
    kind = text.text("model_type", "llama")
    if kind != "llama":
        raise BadInput(f"{text.path}: 'model_type' is {kind[:60]!r}; it must be 'llama'")
    tied = c.flag("tie_word_embeddings")
    text = Config({**({} if text.raw else TEXT), **text.raw, "model_type": kind, "tie_word_embeddings": tied}, text.path)
    hidden = text.size("hidden_size", label="hidden")

    def images(x: Tensor) -> Tensor:
        with t.aside():
            return scatter(t, x, connected(t, c, tower(t, vision, int(c.size("scale_factor", 2))), hidden))

    t.merging = images
    start = len(t.weights)
    llama.forward(t, text)
    for weight in t.weights[start:]:
        if weight.tower is None and weight.name.startswith("model."):
            weight.name = weight.name.replace("model.", "model.text_model.", 1)


def tiles(size: tuple[int, int], tile: int) -> tuple[int, int]:
    """Rows and columns of square tiles, `tile` pixels wide, that an image of this height and width is cut into.

    Source: `_resize_output_size_rescale_to_max_len`, `_resize_output_size_scale_below_upper_bound` and `resize_for_vision_encoder`,
    transformers 5.23 `models/idefics3/image_processing_idefics3.py`.

    >>> tiles((1024, 1024), 512), tiles((480, 640), 364)
    ((4, 4), (3, 4))
    """
    height, width = size
    longest, wide = ACROSS * tile, width >= height
    ratio = width / height
    shortest = int(longest / ratio) if wide else int(longest * ratio)
    shortest += shortest % 2
    height, width = (max(shortest, 1), longest) if wide else (longest, max(shortest, 1))
    ratio = width / height
    other = int(longest / ratio) if wide else int(longest * ratio)
    rows, columns = (math.ceil(other / tile), ACROSS) if wide else (ACROSS, math.ceil(other / tile))
    return max(rows, 1), max(columns, 1)


def tower(t: Tape, c: Config, scale: int) -> Tensor:
    """Pixels -> [tiles of all images, patches, width]. Their mask, a number of 8 B for each pixel, comes with them.

    Tiles of zeros, with which shorter rows of a batch are filled up, are left out, by a copy of the others and of their mask.
    """
    width, ffn, heads = sizes(c, 1152, 3072, 16)
    patches, side = patch_grid(c, 224, 32)
    tile, act = c.size("image_size", 224), c.text("hidden_act", "gelu_pytorch_tanh")
    rows, columns = tiles(t.image_size or MADE_FOR, int(tile))
    each, along = rows * columns + 1, int(tile) // int(side)
    with t.tower("vision", runs=t.images > 0), t.module("model.vision_model"):
        grid = rows * along, columns * along
        see(t, Picture(pixels=(each, 3, int(tile), int(tile)), grid=grid, tokens=each * (along // scale) ** 2))
        n = Dim(int(t.sequences) * (t.images or 1) * each, "tiles")
        with t.module("embeddings"):
            x = patched(t, c, n, patches, width, side, tile)
        x = t.hold(x)
        with t.module("encoder"):
            depth = c.layers(default=12)
            x = encoder(t, "layers", x, depth, (depth,), lambda x: encoder_layer(t, x, heads, ffn, act))
        return layer_norm(t, x, "post_layernorm")


def patched(t: Tape, c: Config, n: Dim, patches: Dim, width: Dim, side: Dim, tile: Dim) -> Tensor:
    """The tiles' patches with their positions, which are looked up for each: [n, patches, width]."""
    channels = c.size("num_channels", 3)
    weights = (
        t.weight("patch_embedding.weight", (width, channels, side, side), "conv"),
        t.weight("patch_embedding.bias", (width,), "conv"),
    )
    mask = given(t, t.tensor("pixel_attention_mask", (n, tile, tile), itemsize=8))
    pixels = pixel_values(t, (n, patches, channels * side * side))
    kept = t.tensor("mask.real", mask.shape, itemsize=8)
    real = t.hold(t.op("pixels.real", (pixels, mask), pixels.shape, extra=(t.hold(kept),)))
    x = convolved(t, real, "patch_embedding", (n, patches, width), weights)
    table = t.weight("position_embedding.weight", (patches, width), "embed")
    ids = t.tensor("position_ids", (n, patches), itemsize=8)
    sort = sum(nbytes for _, nbytes in embedding_backward(int(n) * int(patches)))
    places = t.op("position_embedding", (ids,), x.shape, weights=(table,), saves=(ids,), backward_workspace=sort)
    return asked_of_inputs(t, t.op("positions", (x, places), x.shape, itemsize=max(x.itemsize, t.itemsize), passes=True))


def connected(t: Tape, c: Config, x: Tensor, hidden: Dim) -> Tensor:
    """[tiles, patches, width] -> [1, tokens of all tiles, hidden]: neighbouring patches side by side, by two copies, and a linear layer.

    The model's output names what comes of it, and SmolVLM's what goes in.
    """
    scale = int(c.size("scale_factor", 2))
    width = x.shape[-1] * scale * scale
    with t.tower("vision", part="projector", runs=t.images > 0):
        with t.module("model.connector", given(t, x) if c.text("model_type") == "smolvlm" else x):
            y = t.op("rows", (x,), x.shape)
            y = t.op("shuffled", (y,), (x.shape[0], Dim(int(x.shape[1]) // scale**2, "patches"), width))
            y = given(t, linear(t, y, "modality_projection.proj", hidden))
        return t.op("image_features", (y,), (Dim(1), y.shape[0] * y.shape[1], hidden))
