"""InternVL: any text model behind InternViT and a projector, in the form that transformers has (`OpenGVLab/InternVL3-1B-hf`).

Unusual: a picture is cut into up to twelve square tiles, in the grid whose shape is nearest to its own, and is there once more, whole; each
tile is a sequence of its own to the tower. Blocks scale what they add by learnt vectors; 2 × 2 patches become one token. Checkpoints name
the text model's weights as if it had been saved alone. Source: transformers 5.23 `models/internvl`.
"""

from __future__ import annotations

from ..dim import Dim
from ..errors import BadInput, Unknown
from ..ops import add, layer_norm, linear, rms_norm
from ..tape import Tape
from ..tensors import Picture, Tensor
from . import forward_of
from .blocks import grouped_attention, plain_mlp
from .config import Config
from .vision import Sizes, patch_grid, sizes, two_layer_projector
from .vision_images import asked_of_inputs, convolved, given, pixel_values, scatter, see

MODEL_TYPES = ("internvl",)

MOST = 12
"""Tiles of an image at most: `max_patches`, preprocessor_config.json of the releases and GotOcr2ImageProcessor."""
MADE_FOR = (1024, 1024)


def forward(t: Tape, c: Config) -> None:
    text, vision = c.sub("text_config"), squared(c.sub("vision_config"))
    kind = text.text("model_type", "qwen2")
    if kind in MODEL_TYPES:
        raise BadInput(f"{text.path}: 'model_type' is {kind!r}; it must be a text model's")
    text = Config({**text.raw, "model_type": kind, "tie_word_embeddings": c.flag("tie_word_embeddings", True)}, text.path)
    if t.images and (c.raw.get("vision_feature_layer", -1) != -1 or c.raw.get("downsample_ratio", 0.5) != 0.5):
        raise Unknown(f"{c.path}: images are estimated for the last layer's patches ('vision_feature_layer' -1), 2 × 2 of them a token")
    hidden = text.size("hidden_size", label="hidden")

    def images(x: Tensor) -> Tensor:
        with t.aside():
            return scatter(t, x, projected(t, tower(t, vision), hidden))

    t.merging = images
    with t.module("language_model"):
        forward_of(kind)(t, text)


def squared(c: Config) -> Config:
    """The tower's config with sizes in pixels as one number. Raises BadInput for what is no square."""
    sides = {}
    for key, default in (("image_size", 448), ("patch_size", 14)):
        value = c.raw.get(key, default)
        both = value if isinstance(value, list) else [value, value]
        if len(both) != 2 or both[0] != both[1]:
            raise BadInput(f"{c.path}: {key!r} is {value!r:.60}; it must be one number, or the same twice")
        sides[key] = both[0]
    return Config({**c.raw, **sides}, c.path)


def tiles(size: tuple[int, int], tile: int) -> tuple[int, int]:
    """Rows and columns of tiles for an image of this height and width: of grids equally near the largest that it fills by half.

    Source: `get_optimal_tiled_canvas`, transformers 5.23 `models/got_ocr2/image_processing_got_ocr2.py`.

    >>> tiles((1024, 1024), 448), tiles((480, 640), 448), tiles((448, 896), 448)
    ((3, 3), (3, 4), (1, 2))
    """
    height, width = size
    grids = sorted(((w, h) for w in range(1, MOST + 1) for h in range(1, MOST // w + 1)), key=lambda grid: grid[0] * grid[1])
    best, nearest = (1, 1), float("inf")
    for columns, rows in grids:
        away = abs(width / height - columns / rows)
        if away < nearest or (away == nearest and width * height > 0.5 * tile * tile * columns * rows):
            best, nearest = (rows, columns), away
    return best


def tower(t: Tape, c: Config) -> Tensor:
    """InternVLVisionModel: pixels -> [tiles of all images, patches and the class token, width]."""
    s = sizes(c, 1024, 4096, 16)
    patches, side = patch_grid(c, 448, 14)
    tile, act = int(c.size("image_size", 448)), c.text("hidden_act", "gelu")
    rows, columns = tiles(t.image_size or MADE_FOR, tile)
    each, along = rows * columns + (rows * columns > 1), tile // int(side)
    norm = rms_norm if c.text("norm_type", "layer_norm") == "rms_norm" else layer_norm
    with t.tower("vision", runs=t.images > 0), t.module("vision_tower"):
        see(t, Picture(pixels=(each, 3, tile, tile), grid=(rows * along, columns * along), tokens=each * int(patches) // 4))
        n = Dim(int(t.sequences) * (t.images or 1) * each, "tiles")
        with t.module("embeddings"):
            x = t.hold(embedded(t, c, n, patches, s[0], side))
        with t.module("encoder"), t.layers("layer", range(c.layers(default=24)), x) as x:
            y = scaled(t, attention(t, norm(t, x, "layernorm_before"), s, c), "lambda_1")
            x = add(t, x, y)
            y = plain_mlp(t, norm(t, x, "layernorm_after"), s[1], act=act)
            x = add(t, x, scaled(t, y, "lambda_2"))
        return x if c.flag("use_mean_pooling", True) else layer_norm(t, x, "layernorm")


def embedded(t: Tape, c: Config, n: Dim, patches: Dim, width: Dim, side: Dim) -> Tensor:
    """The tiles' patches behind the class token, with their positions: [n, patches + 1, width]."""
    channels, both = c.size("num_channels", 3), (n, patches + 1, width)
    kernel = (width, channels, side, side)
    weights = t.weight("patch_embeddings.projection.weight", kernel, "conv"), t.weight("patch_embeddings.projection.bias", (width,), "conv")
    pixels = t.hold(pixel_values(t, (n, patches, channels * side * side)))
    x = asked_of_inputs(t, convolved(t, pixels, "patch_embeddings.projection", (n, patches, width), weights))
    x = t.op("class", (x,), both, weights=(t.weight("cls_token", (1, 1, width), "norm"),), itemsize=t.itemsize)
    if c.flag("use_mask_token"):
        t.weight("mask_token", (1, 1, width), "norm").trained = False
    if not c.flag("use_absolute_position_embeddings", True):
        return x
    return t.op("positions", (x,), both, weights=(t.weight("position_embeddings", (1, patches + 1, width), "norm"),), itemsize=t.itemsize)


def attention(t: Tape, x: Tensor, s: Sizes, c: Config) -> Tensor:
    """Attention among the patches of a tile, with norms of all queries and of all keys where the config asks for them."""
    width, _, heads = s
    bias = c.flag("attention_bias")
    with t.module("attention", x, part="attention"):
        q, k, v = (linear(t, x, f"{name}_proj", width, bias=bias) for name in "qkv")
        if c.flag("use_qk_norm"):
            q, k = rms_norm(t, q, "q_norm"), rms_norm(t, k, "k_norm")
        d = Dim(int(width) // int(heads), "vision_head_dim")
        y = grouped_attention(t, q, k, v, heads=heads, kv_heads=heads, head_dim=d, rotary=False, cached=False, masked=False, upcast=False)
        return linear(t, y, "projection_layer", width, bias=True)


def scaled(t: Tape, x: Tensor, name: str) -> Tensor:
    """x times a learnt vector: like x, in the vector's precision under autocast. Its gradient is a sum over a tensor like x."""
    size = max(x.itemsize, t.itemsize)
    weight = t.weight(name, x.shape[-1:], "norm")
    nbytes = x.nbytes // x.itemsize * size * weight.trained
    return t.op(name, (x,), x.shape, itemsize=size, weights=(weight,), saves=(x,), backward_workspace=nbytes)


def projected(t: Tape, x: Tensor, hidden: Dim) -> Tensor:
    """[tiles, patches + 1, width] -> [1, tokens, hidden]: 2 × 2 patches side by side, by two copies, a norm and two linear layers.

    The tower's output is there until the text model returns, the tokens until the loss is there.
    """
    n, patches, width = x.shape[0], int(x.shape[1]) - 1, x.shape[-1]
    with t.tower("vision", part="projector", runs=t.images > 0):
        if t.idle is None:
            t.frames[min(1, len(t.frames) - 1)].append(x)
        y = t.op("image_rows", (x,), (n, Dim(patches, "patches"), width))
        y = t.op("image_shuffled", (y,), (n, Dim(patches // 4, "patches"), width * 4))
        with t.module("multi_modal_projector", y):
            y = two_layer_projector(t, layer_norm(t, y, "layer_norm"), hidden, bias=True)
        return t.view(given(t, y), (Dim(1), n * y.shape[1], hidden))
