"""Vision towers shared by several families: CLIP, SigLIP, Pixtral. The projector behind a tower stands in its family's file.

All are ViTs without a cache: patches by a strided convolution, learnt positions (CLIP, SigLIP) or rotary ones (Pixtral), attention without
a mask. CLIP and SigLIP see images of one size; Pixtral any up to its own, those of a batch one after another in one sequence. Activations
in a tower count only where images are used. Widths and depths by default are those of the configuration classes (transformers 5.23).
"""

from __future__ import annotations

from collections.abc import Callable

from ..dim import Dim
from ..errors import BadInput
from ..ops import activation, add, layer_norm, linear, rms_norm
from ..tape import Tape
from ..tensors import Picture, Tensor
from .blocks import gated_mlp, plain_mlp, self_attention
from .checks import multiple
from .config import Config
from .vision_images import asked_of_inputs, convolved, count, passed, pixel_values, see, shrunk, square

Sizes = tuple[Dim, Dim, Dim]


def sizes(c: Config, hidden: int, ffn: int, heads: int) -> Sizes:
    """Width, MLP width and heads of a tower, with its defaults. Raises BadInput where the heads do not divide the width."""
    width = c.size("hidden_size", hidden, label="vision_hidden")
    vision_heads = c.size("num_attention_heads", heads, label="vision_heads")
    multiple(c, width, vision_heads)
    return width, c.size("intermediate_size", ffn, label="vision_ffn"), vision_heads


def patch_grid(c: Config, image: int, patch: int) -> tuple[Dim, Dim]:
    """Patches of one image of full size, and the side of one in pixels. Raises BadInput where no patch fits."""
    size, side = c.size("image_size", image), c.size("patch_size", patch)
    if side > size:
        raise BadInput(f"{c.path}: 'patch_size' is {int(side)}, greater than 'image_size', {int(size)}")
    return Dim((int(size) // int(side)) ** 2, "patches"), side


def patch_conv(t: Tape, c: Config, name: str, width: Dim, patches: Dim, side: Dim, *, bias: bool, tiles: int = 1) -> Tensor:
    """Pixels -> [images, patches, width], or [tiles of all images, …]: a Conv2d whose stride is its kernel."""
    kernel = (width, c.size("num_channels", 3), side, side)
    weights = [t.weight(f"{name}.weight", kernel, "conv")]
    if bias:
        weights.append(t.weight(f"{name}.bias", (width,), "conv"))
    n = Dim(count(t) * tiles, "tiles") if tiles > 1 else count(t)
    pixels = pixel_values(t, (n, patches, kernel[1] * side * side), joined=tiles > 1)
    return asked_of_inputs(t, convolved(t, pixels, name, (n, patches, width), tuple(weights)))


def encoder(t: Tape, name: str, x: Tensor, depth: int, taps: tuple[int, ...], layer: Callable[[Tensor], Tensor]) -> Tensor:
    """The hidden state after the last layer of `taps`, of which the first is the layers' input; of layers behind it nothing comes."""
    used = max(tap % (depth + 1) for tap in taps)
    with t.layers(name, range(used), x) as y:
        x = layer(y)
    if used < depth:
        with t.unused(), t.layers(name, range(used, depth), x) as y:
            layer(y)
    return x


def encoder_layer(t: Tape, x: Tensor, heads: Dim, ffn: Dim, act: str = "gelu") -> Tensor:
    """CLIP's and SigLIP's: LayerNorm before attention and before a plain MLP, biases everywhere."""
    y = layer_norm(t, x, "layer_norm1")
    y = self_attention(
        t,
        y,
        heads=heads,
        kv_heads=heads,
        head_dim=Dim(int(x.shape[-1]) // int(heads), "vision_head_dim"),
        bias=True,
        out_bias=True,
        rotary=False,
        cached=False,
        masked=False,
        names=("q_proj", "k_proj", "v_proj", "out_proj"),
    )
    x = add(t, x, y)
    return add(t, x, plain_mlp(t, layer_norm(t, x, "layer_norm2"), ffn, act=act))


def clip(t: Tape, c: Config, taps: tuple[int, ...], classed: bool, tiles: int = 1) -> Tensor:
    """CLIPVisionModel's hidden state, if it is `classed` with its class token: positions, `pre_layrnorm` (so spelt in checkpoints).

    Of several `tiles` the caller says what a picture is to it.
    """
    width, ffn, heads = sizes(c, 768, 3072, 12)
    patches, side = patch_grid(c, 224, 32)
    if tiles == 1:
        square(t, c.size("image_size", 224), side, patches + 1 if classed else patches)
    act = c.text("hidden_act", "quick_gelu")
    with t.module("vision_model"):
        with t.module("embeddings"):
            x = patch_conv(t, c, "patch_embedding", width, patches, side, bias=False, tiles=tiles)
            both = (x.shape[0], patches + 1, width)
            x = t.op("class", (x,), both, weights=(t.weight("class_embedding", (width,), "norm"),))
            x = t.op("positions", (x,), both, weights=(t.weight("position_embedding.weight", (patches + 1, width), "embed"),))
        x = t.hold(layer_norm(t, x, "pre_layrnorm"))
        with t.module("encoder"):
            x = encoder(t, "layers", x, c.layers(default=12), taps, lambda x: encoder_layer(t, x, heads, ffn, act))
        with t.unused():
            layer_norm(t, t.view(x, (x.shape[0], width)), "post_layernorm")
    return x if classed else t.view(x, (x.shape[0], patches, width))


def siglip(t: Tape, c: Config, *, tokens: int | None = None, taps: tuple[int, ...] = (), tiles: int = 1) -> Tensor:
    """SiglipVisionModel: its last norm's result for all patches, or a hidden state of `taps`; an image is `tokens`, by default its patches.

    A pooling head stands behind it unless `vision_use_head` is false, of which nothing comes.
    """
    width, ffn, heads = sizes(c, 768, 3072, 12)
    patches, side = patch_grid(c, 224, 16)
    if tiles == 1:
        square(t, c.size("image_size", 224), side, tokens or patches)
    act, depth = c.text("hidden_act", "gelu_pytorch_tanh"), c.layers(default=12)
    with t.module("vision_model"):
        with t.module("embeddings"):
            x = patch_conv(t, c, "patch_embedding", width, patches, side, bias=True, tiles=tiles)
            table = t.weight("position_embedding.weight", (patches, width), "embed")
        x = t.hold(t.op("embeddings.positions", (x,), x.shape, weights=(table,)))
        with t.module("encoder"):
            x = encoder(t, "layers", x, depth, taps or (depth,), lambda x: encoder_layer(t, x, heads, ffn, act))
        if not taps:
            x = layer_norm(t, x, "post_layernorm")
        with t.unused():
            pooled = layer_norm(t, x, "post_layernorm") if taps else x
            if c.flag("vision_use_head", True):
                pooling_head(t, pooled, ffn, act)
    return x


def pooling_head(t: Tape, x: Tensor, ffn: Dim, act: str) -> None:
    """SigLIP's: a learnt probe attends to all patches, then an MLP."""
    width = x.shape[-1]
    with t.module("head", x):
        probe = t.op("probe", (x,), (x.shape[0], Dim(1), width), weights=(t.weight("probe", (1, 1, width), "norm"),))
        with t.module("attention"):
            packed = t.weight("in_proj_weight", (3 * width, width), "linear"), t.weight("in_proj_bias", (3 * width,), "linear")
            y = t.op("attention", (probe, x), probe.shape, weights=packed)
            y = linear(t, y, "out_proj", width, bias=True)
        plain_mlp(t, layer_norm(t, y, "layernorm"), ffn, act=act)


def pixtral(t: Tape, c: Config, taps: tuple[int, ...], merge: int) -> Tensor:
    """PixtralVisionModel: Llama's layers over the patches of all images, [1, patches, width], rotary in two dimensions.

    An image is a token for each `merge` × `merge` patches. sdpa and eager attention get a mask [patches, patches] that keeps images apart.
    """
    width, ffn, heads = sizes(c, 1024, 4096, 16)
    _, side = patch_grid(c, 1024, 16)
    longest = int(c.size("image_size", 1024))
    tall, wide = shrunk(t.image_size or (longest, longest), int(side) * merge, longest)
    grid = tall // int(side), wide // int(side)
    see(t, Picture(pixels=(3, tall, wide), grid=grid, tokens=grid[0] * grid[1] // merge**2))
    d = Dim(int(width) // int(heads), "vision_head_dim")
    x = t.hold(patch_conv(t, c, "patch_conv", width, Dim(grid[0] * grid[1], "patches"), side, bias=False))
    x = t.op("joined", (x,), (Dim(1), x.shape[0] * x.shape[1], width))
    with t.module("", x := rms_norm(t, x, "ln_pre")):
        with t.unused():
            mask = passed(t, t.hold(t.op("mask", (x,), (Dim(1), x.shape[1], x.shape[1]))))

        def layer(x: Tensor) -> Tensor:
            y = rms_norm(t, x, "attention_norm")
            y = self_attention(t, y, heads=heads, kv_heads=heads, head_dim=d, cached=False, mask=mask, module="attention")
            x = add(t, x, y)
            return add(t, x, gated_mlp(t, rms_norm(t, x, "ffn_norm"), ffn, module="feed_forward"))

        with t.module("transformer"):
            return encoder(t, "layers", x, c.layers(default=24), taps, layer)


def two_layer_projector(t: Tape, x: Tensor, width: Dim, *, bias: bool) -> Tensor:
    """LLaVA-1.5's: linear_1, gelu, linear_2, into the text model's width."""
    return linear(t, activation(t, linear(t, x, "linear_1", width, bias=bias)), "linear_2", width, bias=bias)
