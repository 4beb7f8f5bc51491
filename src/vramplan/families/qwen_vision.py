"""The vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL (Qwen3.5's too): a ViT over patches of two frames, then a 2 × 2 merger.

Unusual: any resolution, so no fixed number of patches; here that of one 1024 × 1024 image. Qwen2.5-VL's blocks are Llama-like (RMSNorm,
gated MLP, attention in windows); Qwen3-VL adds a learnt position table and *deepstack*, mergers that feed the first layers of the text
model. Not here: the text models.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import BadInput
from ..ops import activation, add, attention, layer_norm, linear, rms_norm
from ..tape import Dim, Tape, Tensor
from .blocks import gated_mlp, plain_mlp
from .checks import multiple
from .config import Config

Norm = Callable[[Tape, Tensor, str], Tensor]
Mlp = Callable[[Tape, Tensor], Tensor]


def qwen2_vl_tower(t: Tape, c: Config) -> Tensor:
    """Qwen2-VL: `embed_dim` is the tower's width, `hidden_size` the text model's."""
    width = c.size("embed_dim", 1280, label="vision_hidden")
    ffn = width * c.size("mlp_ratio", 4)
    with t.tower("vision"), t.module("visual"):
        x = patch_embedding(t, c, width, patch=14, bias=False)
        x = blocks(t, c, x, depth=32, norm=layer_norm, mlp=lambda t, y: plain_mlp(t, y, ffn))
        return merger(t, c, x, c.size("hidden_size", 3584), norm="ln_q", names=("mlp.0", "mlp.2"))


def qwen2_5_vl_tower(t: Tape, c: Config) -> Tensor:
    """Qwen2.5-VL."""
    width, ffn = c.size("hidden_size", 3584, label="vision_hidden"), c.size("intermediate_size", 3420, label="vision_ffn")
    with t.tower("vision"), t.module("visual"):
        x = patch_embedding(t, c, width, patch=14, bias=False)
        x = blocks(t, c, x, depth=32, norm=rms_norm, mlp=lambda t, y: gated_mlp(t, y, ffn, bias=True))
        return merger(t, c, x, c.size("out_hidden_size", 3584), norm="ln_q", names=("mlp.0", "mlp.2"), kind=rms_norm)


def qwen3_vl_tower(t: Tape, c: Config, *, deepstack: bool = True) -> Tensor:
    """Qwen3-VL; Qwen3.5 has no `deepstack`."""
    width, ffn = c.size("hidden_size", 1152, label="vision_hidden"), c.size("intermediate_size", 4304, label="vision_ffn")
    out = c.size("out_hidden_size", 3584)
    with t.tower("vision"), t.module("model.visual"):
        x = patch_embedding(t, c, width, patch=16, bias=True)
        positions = t.weight("pos_embed.weight", (c.size("num_position_embeddings", 2304), width), "embed")
        x = t.op("positions", (x,), x.shape, weights=(positions,))
        x = blocks(t, c, x, depth=27, norm=layer_norm, mlp=lambda t, y: plain_mlp(t, y, ffn, names=("linear_fc1", "linear_fc2")))
        if deepstack and (tapped := deepstack_layers(c)):
            with t.layers("deepstack_merger_list", range(tapped), x) as y:
                merger(t, c, y, out, norm="norm", names=("linear_fc1", "linear_fc2"), module="", shuffle_first=True)
        return merger(t, c, x, out, norm="norm", names=("linear_fc1", "linear_fc2"))


def deepstack_layers(c: Config) -> int:
    """How many blocks feed the text model besides the last. Raises BadInput for one that the tower does not have."""
    tapped = c.items("deepstack_visual_indexes")
    depth = c.layers("depth", 27)
    for index in tapped or ():
        if not isinstance(index, int) or not 0 <= index < depth:
            raise BadInput(f"{c.path}: 'deepstack_visual_indexes' holds {index!r:.60}; the tower's layers are 0 to {depth - 1}")
    return 3 if tapped is None else len(tapped)


def patch_embedding(t: Tape, c: Config, width: Dim, *, patch: int, bias: bool) -> Tensor:
    """Pixels of one 1024 × 1024 image -> [1, patches, width], a Conv3d whose stride is its kernel."""
    p, frames = c.size("patch_size", patch), c.size("temporal_patch_size", 2)
    kernel = (width, c.size("in_channels", 3), frames, p, p)
    patches = Dim(max(1, 1024 // int(p)) ** 2, "patches")
    weights = [t.weight("patch_embed.proj.weight", kernel, "conv")]
    if bias:
        weights.append(t.weight("patch_embed.proj.bias", (width,), "conv"))
    pixels = t.tensor("pixel_values", (Dim(1), patches, kernel[1] * frames * p * p))
    return t.op("patch_embed", (pixels,), (Dim(1), patches, width), weights=tuple(weights), saves=(pixels,))


def blocks(
    t: Tape, c: Config, x: Tensor, *, depth: int, norm: Norm, mlp: Mlp, heads: int = 16, biases: tuple[bool, bool] = (True, True)
) -> Tensor:
    """The ViT's layers: x + attention(norm(x)), x + mlp(norm(x)); `biases` are those of the attention's input and output."""
    heads = c.size("num_heads", heads, label="vision_heads")
    width = Dim(int(x.shape[-1]), "vision_hidden")
    multiple(c, width, heads)
    with t.layers("blocks", range(c.layers("depth", depth)), x) as x:
        y = norm(t, x, "norm1")
        with t.module("attn", y):
            qkv = linear(t, y, "qkv", 3 * width, bias=biases[0])
            q, k, v = (t.view(qkv, (*x.shape[:-1], width)) for _ in range(3))
            y = linear(t, attention(t, q, k, v, heads=heads, kv_heads=heads, past=False), "proj", width, bias=biases[1])
        x = add(t, x, y)
        return add(t, x, mlp(t, norm(t, x, "norm2")))


def merger(
    t: Tape,
    c: Config,
    x: Tensor,
    out: Dim,
    *,
    norm: str,
    names: tuple[str, str],
    kind: Norm = layer_norm,
    module: str = "merger",
    shuffle_first: bool = False,
) -> Tensor:
    """`spatial_merge_size`² neighbouring patches become one token of the text model: [1, patches, width] -> [1, patches/4, out]."""
    unit = c.size("spatial_merge_size", 2) * c.size("spatial_merge_size", 2)
    with t.module(module, x):
        merged = (Dim(1), x.shape[1] // unit, x.shape[-1] * unit)
        x = t.view(kind(t, t.view(x, merged) if shuffle_first else x, norm), merged)
        return linear(t, activation(t, linear(t, x, names[0], merged[-1], bias=True)), names[1], out, bias=True)
