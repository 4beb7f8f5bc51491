"""Vision towers shared by several families: CLIP, SigLIP, Pixtral. The projector behind a tower stands in its family's file.

All are ViTs without a cache: patches by a strided convolution, learnt positions (CLIP, SigLIP) or rotary ones (Pixtral), attention without
a mask. Activations in a tower count only where images are used.
"""

from __future__ import annotations

from ..errors import BadInput
from ..ops import activation, add, layer_norm, linear, rms_norm
from ..tape import Dim, Tape, Tensor
from .blocks import gated_mlp, plain_mlp, self_attention
from .checks import multiple
from .config import Config

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


def patch_conv(t: Tape, c: Config, name: str, width: Dim, patches: Dim, side: Dim, *, bias: bool) -> Tensor:
    """Pixels -> [1, patches, width]: a Conv2d whose stride is its kernel."""
    kernel = (width, c.size("num_channels", 3), side, side)
    weights = [t.weight(f"{name}.weight", kernel, "conv")]
    if bias:
        weights.append(t.weight(f"{name}.bias", (width,), "conv"))
    pixels = t.tensor("pixel_values", (Dim(1), patches, kernel[1] * side * side))
    return t.op(name, (pixels,), (Dim(1), patches, width), weights=tuple(weights), saves=(pixels,))


def encoder_layer(t: Tape, x: Tensor, heads: Dim, ffn: Dim) -> Tensor:
    """CLIP's and SigLIP's: LayerNorm before attention and before a plain MLP, biases everywhere."""
    d = x.shape[-1] // heads
    y = layer_norm(t, x, "layer_norm1")
    y = self_attention(
        t,
        y,
        heads=heads,
        kv_heads=heads,
        head_dim=Dim(d, "vision_head_dim"),
        bias=True,
        out_bias=True,
        rotary=False,
        cached=False,
        names=("q_proj", "k_proj", "v_proj", "out_proj"),
    )
    x = add(t, x, y)
    return add(t, x, plain_mlp(t, layer_norm(t, x, "layer_norm2"), ffn))


def clip(t: Tape, c: Config) -> Tensor:
    """CLIPVisionModel: a class token, positions, `pre_layrnorm` (so spelt in the checkpoints). Defaults: CLIPVisionConfig."""
    width, ffn, heads = sizes(c, 768, 3072, 12)
    patches, side = patch_grid(c, 224, 32)
    with t.module("vision_model"):
        with t.module("embeddings"):
            x = patch_conv(t, c, "patch_embedding", width, patches, side, bias=False)
            tables = t.weight("class_embedding", (width,), "norm"), t.weight("position_embedding.weight", (patches + 1, width), "embed")
            x = t.op("positions", (x,), (Dim(1), patches + 1, width), weights=tables)
        x = layer_norm(t, x, "pre_layrnorm")
        with t.module("encoder"), t.layers("layers", range(c.layers(default=12)), x) as x:
            x = encoder_layer(t, x, heads, ffn)
        layer_norm(t, t.view(x, (Dim(1), width)), "post_layernorm")
    return t.view(x, (Dim(1), patches, width))


def siglip(t: Tape, c: Config) -> Tensor:
    """SiglipVisionModel, and its pooling head unless `vision_use_head` is false. Defaults: SiglipVisionConfig."""
    width, ffn, heads = sizes(c, 768, 3072, 12)
    patches, side = patch_grid(c, 224, 16)
    with t.module("vision_model"):
        with t.module("embeddings"):
            x = patch_conv(t, c, "patch_embedding", width, patches, side, bias=True)
            table = t.weight("position_embedding.weight", (patches, width), "embed")
            x = t.op("positions", (x,), x.shape, weights=(table,))
        with t.module("encoder"), t.layers("layers", range(c.layers(default=12)), x) as x:
            x = encoder_layer(t, x, heads, ffn)
        x = layer_norm(t, x, "post_layernorm")
        if c.flag("vision_use_head", True):
            with t.module("head", x):
                probe = t.op("probe", (x,), (Dim(1), Dim(1), width), weights=(t.weight("probe", (1, 1, width), "norm"),))
                with t.module("attention"):
                    packed = t.weight("in_proj_weight", (3 * width, width), "linear"), t.weight("in_proj_bias", (3 * width,), "linear")
                    y = t.op("attention", (probe, x), probe.shape, weights=packed)
                    y = linear(t, y, "out_proj", width, bias=True)
                plain_mlp(t, layer_norm(t, y, "layernorm"), ffn)
    return x


def pixtral(t: Tape, c: Config) -> Tensor:
    """PixtralVisionModel: Llama's layers over patches, rotary in two dimensions. Defaults: PixtralVisionConfig."""
    width, ffn, heads = sizes(c, 1024, 4096, 16)
    patches, side = patch_grid(c, 1024, 16)
    x = rms_norm(t, patch_conv(t, c, "patch_conv", width, patches, side, bias=False), "ln_pre")
    with t.module("transformer"), t.layers("layers", range(c.layers(default=24)), x) as x:
        y = rms_norm(t, x, "attention_norm")
        d = Dim(int(width) // int(heads), "vision_head_dim")
        y = self_attention(t, y, heads=heads, kv_heads=heads, head_dim=d, cached=False, module="attention")
        x = add(t, x, y)
        return add(t, x, gated_mlp(t, rms_norm(t, x, "ffn_norm"), ffn, module="feed_forward"))


TOWERS = {"clip_vision_model": clip, "siglip_vision_model": siglip, "pixtral": pixtral}


def vision_tower(t: Tape, c: Config, default: str) -> Tensor:
    """The tower that `model_type` names. Raises BadInput for one that is not described here."""
    kind = c.text("model_type", default)
    if kind not in TOWERS:
        raise BadInput(f"{c.path}: 'model_type' is {kind[:60]!r}; vision towers known here are {', '.join(TOWERS)}")
    return TOWERS[kind](t, c)


def two_layer_projector(t: Tape, x: Tensor, width: Dim, *, bias: bool) -> Tensor:
    """LLaVA-1.5's: linear_1, gelu, linear_2, into the text model's width."""
    return linear(t, activation(t, linear(t, x, "linear_1", width, bias=bias)), "linear_2", width, bias=bias)
