"""The vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL (Qwen3.5's too): a ViT over patches of two frames, then a 2 × 2 merger.

Unusual: any resolution, so no fixed number of patches (here, unless it is said, those of a 1024 × 1024 image); the patches of all images
stand in one sequence, each image attending to itself, and rotary positions are in fp32. Qwen2.5-VL's blocks are Llama-like (RMSNorm, gated
MLP, attention in windows); Qwen3-VL adds a learnt position table and *deepstack*, mergers that feed the first layers of the text model. Not
here: the text models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..dim import Dim
from ..errors import BadInput
from ..ops import activation, add, attention, layer_norm, linear, rms_norm
from ..ops.scale import scale
from ..tape import Tape
from ..tensors import Picture, Tensor
from .blocks import gated_mlp, plain_mlp
from .checks import layer_set, multiple
from .config import Config, groups
from .vision_images import asked_of_inputs, convolved, count, pixel_values, rounded, scatter, see

Norm = Callable[[Tape, Tensor, str], Tensor]
Mlp = Callable[[Tape, Tensor], Tensor]

SIZE = (1024, 1024)
PIXELS_2 = (4 * 28 * 28, 16384 * 28 * 28)
PIXELS_3 = (256 * 256, 4096 * 4096)
"""Least and most pixels of an image: preprocessor_config.json of Qwen/Qwen2-VL-7B-Instruct and Qwen2.5-VL-7B-Instruct; of Qwen3-VL's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a tower hands over: the images' tokens [1, tokens, hidden], and as many for each text layer that deepstack feeds."""

    features: Tensor
    deep: tuple[Tensor, ...] = ()


def merging(t: Tape, tower: Callable[[], Seen]) -> list[Seen]:
    """Let what comes of `tower` join the embeddings; what it hands over is in the list returned, once they have been walked."""
    seen: list[Seen] = []

    def images(x: Tensor) -> Tensor:
        with t.aside():
            seen.append(tower())
            with t.tower("vision", part="projector", runs=t.images > 0):
                features = t.op("image_features", (seen[0].features,), seen[0].features.shape)
            return scatter(t, x, features)

    t.merging = images
    return seen


def qwen2_vl_tower(t: Tape, c: Config) -> Seen:
    """Qwen2-VL: `embed_dim` is the tower's width, `hidden_size` the text model's."""
    width = c.size("embed_dim", 1280, label="vision_hidden")
    ffn, act = width * c.size("mlp_ratio", 4), c.text("hidden_act", "quick_gelu")
    with t.module("visual"):
        with t.tower("vision", runs=t.images > 0):
            x = asked_of_inputs(t, patch_embedding(t, c, width, patch=14, bias=False, pixels=PIXELS_2))
            x.saved = 0  # the first block keeps it, as its input
            x = blocks(t, c, x, depth=32, norm=layer_norm, mlp=lambda t, y: plain_mlp(t, y, ffn, act=act), rotary=True)
        return Seen(features=merger(t, c, x, c.size("hidden_size", 3584), norm="ln_q", names=("mlp.0", "mlp.2")))


def qwen2_5_vl_tower(t: Tape, c: Config) -> Seen:
    """Qwen2.5-VL: patches are put into the order of its windows, and back."""
    width, ffn = c.size("hidden_size", 3584, label="vision_hidden"), c.size("intermediate_size", 3420, label="vision_ffn")
    with t.module("visual"):
        with t.tower("vision", runs=t.images > 0):
            x = asked_of_inputs(t, patch_embedding(t, c, width, patch=14, bias=False, pixels=PIXELS_2))
            x = t.op("windows", (x,), x.shape, itemsize=x.itemsize)
            side = int(c.size("window_size", 112)) // int(c.size("patch_size", 14))
            mlp: Mlp = lambda t, y: gated_mlp(t, y, ffn, bias=True)  # noqa: E731
            x = blocks(t, c, x, depth=32, norm=rms_norm, mlp=mlp, rotary=True, window=side * side)
        x = merger(t, c, x, c.size("out_hidden_size", 3584), norm="ln_q", names=("mlp.0", "mlp.2"), kind=rms_norm)
        with t.tower("vision", part="projector", runs=t.images > 0):
            return Seen(features=t.op("unwindowed", (x,), x.shape, itemsize=x.itemsize))


def qwen3_vl_tower(t: Tape, c: Config, *, deepstack: bool = True) -> Seen:
    """Qwen3-VL; Qwen3.5 has no `deepstack`."""
    width, ffn = c.size("hidden_size", 1152, label="vision_hidden"), c.size("intermediate_size", 4304, label="vision_ffn")
    out, act = c.size("out_hidden_size", 3584), c.text("hidden_act", "gelu_pytorch_tanh")
    names = ("linear_fc1", "linear_fc2")
    with t.module("model.visual"):
        with t.tower("vision", runs=t.images > 0):
            x = positions(t, c, patch_embedding(t, c, width, patch=16, bias=True, pixels=PIXELS_3))
            tapped = deepstack_layers(c) if deepstack else 0
            t.hold(t.tensor("deepstack.features", (Dim(tapped), x.shape[1] // merged_patches(c), out)))  # while the last blocks run
            x = blocks(t, c, x, depth=27, norm=layer_norm, mlp=lambda t, y: plain_mlp(t, y, ffn, names=names, act=act), rotary=True)
        deep: list[Tensor] = []
        if tapped:
            with t.layers("deepstack_merger_list", range(tapped), x, recomputed=False) as y:
                deep = [merger(t, c, y, out, norm="norm", names=names, module="", shuffle_first=True)] * tapped
                y.storage.saved = 0  # it is a block's output, which the block after it keeps
        return Seen(features=merger(t, c, x, out, norm="norm", names=names), deep=tuple(deep))


def positions(t: Tape, c: Config, x: Tensor) -> Tensor:
    """Learnt positions of a square grid, for each patch the weighted sum of the four that are nearest, in fp32."""
    width = x.shape[-1]
    table = t.weight("pos_embed.weight", (c.size("num_position_embeddings", 2304), width), "embed")
    ids = t.tensor("pos_embed.ids", (*x.shape[:-1], Dim(4)), itemsize=8)
    found = t.op("pos_embed", (ids,), (*x.shape[:-1], Dim(4), width), weights=(table,), saves=(ids,))
    nearness = t.tensor("pos_embed.weights", (*x.shape[:-1], Dim(4)), itemsize=4)
    weighted = t.op("pos_embed.weighted", (found, nearness), found.shape, itemsize=4, saves=(nearness,), extra=(nearness,))
    summed = t.hold(t.op("pos_embed.sum", (weighted,), x.shape, itemsize=4))
    own = t.op("pos_embed.cast", (summed,), x.shape, itemsize=x.itemsize) if x.itemsize != 4 else summed
    return t.op("positions", (x, own), x.shape, itemsize=x.itemsize)


def deepstack_layers(c: Config) -> int:
    """How many blocks feed the text model besides the last. Raises BadInput for one that the tower does not have."""
    tapped = c.items("deepstack_visual_indexes")
    depth = c.layers("depth", 27)
    for index in tapped or ():
        if not isinstance(index, int) or not 0 <= index < depth:
            raise BadInput(f"{c.path}: 'deepstack_visual_indexes' holds {index!r:.60}; the tower's layers are 0 to {depth - 1}")
    return 3 if tapped is None else len(tapped)


def patch_embedding(t: Tape, c: Config, width: Dim, *, patch: int, bias: bool, pixels: tuple[int, int] = PIXELS_2) -> Tensor:
    """Pixels of all images -> [1, patches, width], a Conv3d whose stride is its kernel. `pixels`: least and most of one image."""
    p, frames, channels = c.size("patch_size", patch), c.size("temporal_patch_size", 2), c.size("in_channels", 3)
    merge = int(c.size("spatial_merge_size", 2))
    sides = rounded(t.image_size or SIZE, int(p) * merge, *pixels)
    grid = sides[0] // int(p), sides[1] // int(p)
    patches, pixel = Dim(count(t) * grid[0] * grid[1], "patches"), channels * frames * p * p
    if t.images:
        see(t, Picture(pixels=(grid[0] * grid[1], int(pixel)), grid=grid, tokens=grid[0] * grid[1] // merge**2))
    weights = [t.weight("patch_embed.proj.weight", (width, channels, frames, p, p), "conv")]
    if bias:
        weights.append(t.weight("patch_embed.proj.bias", (width,), "conv"))
    values = t.hold(pixel_values(t, (Dim(1), patches, pixel)))
    return convolved(t, values, "patch_embed", (Dim(1), patches, width), tuple(weights))


def blocks(
    t: Tape,
    c: Config,
    x: Tensor,
    *,
    depth: int,
    norm: Norm,
    mlp: Mlp,
    heads: int = 16,
    biases: tuple[bool, bool] = (True, True),
    rotary: bool = False,
    window: int = 0,
) -> Tensor:
    """The ViT's layers: x + attention(norm(x)), x + mlp(norm(x)); `biases` are those of the attention's input and output.

    sdpa and eager attention take one image at a time, or but for the layers `fullatt_block_indexes` one `window` of so many patches; their
    outputs are then joined. Windows at an image's edges are smaller; eager attention's scores are those of whole ones.
    """
    heads = c.size("num_heads", heads, label="vision_heads")
    width = Dim(int(x.shape[-1]), "vision_hidden")
    d = multiple(c, width, heads)
    with t.unused():
        tables = [t.hold(t.op(f"rotary.{table}", (x,), (Dim(1), x.shape[1], d), itemsize=4)) for table in ("cos", "sin")] if rotary else []
    whole = layer_set(c, "fullatt_block_indexes", (7, 15, 23, 31)) if window else ()
    for windowed, layers in groups(window > 0 and i not in whole for i in range(c.layers("depth", depth))):
        with t.layers("blocks", layers, x) as x:
            y = norm(t, x, "norm1")
            with t.module("attn", y):
                qkv = linear(t, y, "qkv", 3 * width, bias=biases[0])
                q, k, v = (t.view(qkv, (*x.shape[:-1], width)) for _ in range(3))
                if rotary and t.kernels.rope == "eager":
                    q, k = rotated(t, q, k, tables)
                y = apart(t, q, k, v, heads, window if windowed else 0)
                y = linear(t, y, "proj", width, bias=biases[1])
            x = add(t, x, y)
            x = add(t, x, mlp(t, norm(t, x, "norm2")))
    return x


def apart(t: Tape, q: Tensor, k: Tensor, v: Tensor, heads: Dim, window: int) -> Tensor:
    """Attention within each image, or each `window` of so many patches, as if the others were further heads: [1, patches, width] -> it."""
    n, width = int(q.shape[1]), q.shape[-1]
    each = window if window and t.kernels.attention == "eager" else n // int(count(t))
    several = -(-n // each)
    shape = (Dim(1), Dim(each, "patches"), several * width)
    q, k, v = (t.view(x, shape) for x in (q, k, v))
    y = attention(t, q, k, v, heads=several * heads, kv_heads=several * heads, window=window or None, past=False, masked=False)
    y = t.view(y, (Dim(1), Dim(n, "patches"), width))
    return t.op("joined", (y,), y.shape, itemsize=y.itemsize) if t.kernels.attention in ("sdpa", "eager") else y


def rotated(t: Tape, q: Tensor, k: Tensor, tables: list[Tensor]) -> tuple[Tensor, Tensor]:
    """q and k turned in fp32, and cast back: `apply_rotary_pos_emb_vision`, transformers 5.23 `models/qwen2_vl/modeling_qwen2_vl.py`."""
    with t.module("", q, k):
        wide = [t.hold(t.op(f"{side}.float", (x,), x.shape, itemsize=4)) for side, x in (("q", q), ("k", k))]
        turned = []
        for side, x in zip(("q", "k"), wide, strict=True):
            cos = t.op(f"{side}.cos", (x, tables[0]), x.shape, itemsize=4, saves=tuple(tables[:1]))
            half = t.op(f"{side}.rotate_half", (x,), x.shape, itemsize=4)
            sin = t.op(f"{side}.sin", (half, tables[1]), x.shape, itemsize=4, saves=tuple(tables[1:]))
            turned.append(t.op(f"{side}.turned", (cos, sin), x.shape, itemsize=4))
        return t.op("q.rope", (turned[0],), q.shape, itemsize=q.itemsize), t.op("k.rope", (turned[1],), k.shape, itemsize=k.itemsize)


def merged_patches(c: Config) -> Dim:
    """Patches that become one token: `spatial_merge_size`²."""
    return c.size("spatial_merge_size", 2) * c.size("spatial_merge_size", 2)


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
    """Neighbouring patches become one token of the text model: [1, patches, width] -> [1, patches/4, out]."""
    unit = merged_patches(c)
    with t.tower("vision", part="projector", runs=t.images > 0), t.module(module, x):
        merged = (Dim(1), x.shape[1] // unit, x.shape[-1] * unit)
        x = t.view(kind(t, t.view(x, merged) if shuffle_first else x, norm), merged)
        return linear(t, activation(t, linear(t, x, names[0], merged[-1], bias=True)), names[1], out, bias=True)


def deepened(t: Tape, x: Tensor, deep: Tensor) -> Tensor:
    """The text model's hidden states with deepstack's features added where images stand: two copies of those, and one of the states.

    Source: `Qwen3VLTextModel._deepstack_process`, transformers 5.23 `models/qwen3_vl/modeling_qwen3_vl.py`.
    """
    with t.module("", x):
        states = scale(t, x, "deepstack.clone")
        there = t.op("deepstack.there", (states,), deep.shape)
        sums = t.hold(add(t, there, deep, "deepstack.sum"))
        return t.op("deepstack", (states, sums), x.shape)
