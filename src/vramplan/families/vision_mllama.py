"""The vision tower of Llama 3.2 Vision: a ViT over the four tiles of an image, and a global transformer behind it.

Unusual: an image has always all its tiles, of 560 × 560 pixels each, which attend to each other (what is padding by a mask); positions have
gates, and a table for each aspect ratio; the tower holds the outputs of all its layers, hands on five of them beside the last, and is not
recomputed by checkpointing. Defaults: MllamaVisionConfig (transformers 5.23 `models/mllama/modeling_mllama.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..dim import Dim
from ..ops import add, layer_norm, linear
from ..tape import Tape
from ..tensors import Picture, Tensor, Weight
from .blocks import plain_mlp, self_attention
from .checks import multiple
from .config import Config
from .vision import patch_conv, patch_grid
from .vision_images import count, passed, see

TAPS = (3, 7, 15, 23, 30)
"""The layers whose outputs are handed on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What the text model gets: `states` [images, tokens, hidden], the `tokens` of one image, and the mask of who sees which image."""

    states: Tensor
    tokens: Dim
    mask: Tensor | None


def vision(t: Tape, c: Config, hidden: Dim) -> Image:
    """The tower and the projector."""
    width, ffn = c.size("hidden_size", 1280, label="vision_hidden"), c.size("intermediate_size", 5120, label="vision_ffn")
    heads, tiles = c.size("attention_heads", 16, label="vision_heads"), c.size("max_num_tiles", 4, label="tiles")
    multiple(c, width, heads)
    patches, side = patch_grid(c, 448, 14)
    size, tokens, n = int(c.size("image_size", 448)), patches + 1, count(t)
    taken = len(c.items("intermediate_layers_indices") or TAPS)
    with t.tower("vision", runs=t.images > 0):
        see(t, Picture(pixels=(int(tiles), 3, size, size), grid=(size // int(side), size // int(side)), tokens=1))
        with t.module("vision_model"):
            x = embedded(t, c, width, patches, side, tiles)
            padded = Dim(-(-int(tokens) // 8) * 8, "patches")
            x = t.op("padded", (layer_norm(t, x, "layernorm_pre"),), (n, tiles * padded, width))
            with t.unused():
                product = t.op("mask.product", (x,), (n, x.shape[1], x.shape[1]))
                mask = t.hold(t.op("mask", (product,), product.shape))
            depth = c.layers(default=32)
            x = encoder(t, x, "transformer", depth, (heads, ffn), mask, gated=False)
            outputs = t.hold(t.tensor("outputs", (Dim(0 if x.grad else depth), *x.shape)))
            x = layer_norm(t, x, "layernorm_post")
            x = t.op("post_tile", (x,), x.shape, weights=tile_table(t, "post", aspect_ratios(c), tiles, width), extra=(outputs,))
            x = encoder(t, x, "global_transformer", c.layers("num_global_layers", 8), (heads, ffn), mask, gated=True)
            stacked = t.hold(t.op("intermediate", (x,), (*x.shape, Dim(taken))))
            unpadded = t.op("intermediate.unpadded", (stacked,), (n, tiles * tokens, taken * width))
            joined = (n, tiles * tokens, c.size("vision_output_dim", 7680))
            x = t.op("joined", (x, unpadded), joined)
    with t.tower("vision", part="projector", runs=t.images > 0):
        states = linear(t, x, "multi_modal_projector", hidden, bias=True)
    seen = Dim(int(tiles * tokens), "image_tokens")
    return Image(states=passed(t, states) if t.images else states, tokens=seen, mask=cross_mask(t, states, seen))


def cross_mask(t: Tape, states: Tensor, tokens: Dim) -> Tensor | None:
    """Numbers for who sees which image, [b, s, the tokens of a sequence's images]; processors give one always."""
    if not t.images:
        return None
    with t.unused():
        return passed(t, t.op("cross_attention_mask", (states,), (t.sequences, t.tokens, t.images * tokens)))


def embedded(t: Tape, c: Config, width: Dim, patches: Dim, side: Dim, tiles: Dim) -> Tensor:
    """Pixels -> [images, tiles · patches, width], a class token in each tile, with gated positions of the tiles and the patches in them."""
    tokens, n, ratio_ids = patches + 1, count(t), aspect_ratios(c)
    x = patch_conv(t, c, "patch_embedding", width, tiles * patches, side, bias=False)
    x = t.op("pre_tile", (x,), x.shape, weights=tile_table(t, "pre", ratio_ids, tiles, width))
    x = t.op("class", (x,), (n, tiles * tokens, width), weights=(t.weight("class_embedding", (width,), "norm"),))
    with t.module("gated_positional_embedding", x):
        position = t.weight("embedding", (tokens, width), "embed"), t.weight("gate", (1,), "norm")
        x = t.op("positions", (x,), x.shape, weights=position)
        table, ids = t.weight("tile_embedding.weight", (ratio_ids, tiles * tokens * width), "embed"), t.tensor("ratios", (n,), itemsize=8)
        found = t.op("tiles", (ids,), x.shape, weights=(table,), saves=(ids,))
        return add(t, x, t.op("tiles.gated", (found,), x.shape, saves=(found,)), "tile_positions")


def aspect_ratios(c: Config) -> Dim:
    """Shapes in which tiles are laid out, and one for no image."""
    ratios = c.items("supported_aspect_ratios")
    return Dim(9 if ratios is None else len(ratios) + 1, "aspect_ratios")


def tile_table(t: Tape, place: str, ratio_ids: Dim, tiles: Dim, width: Dim) -> tuple[Weight, ...]:
    """A position for each tile, by the image's aspect ratio, and its gate."""
    name = f"{place}_tile_positional_embedding"
    return t.weight(f"{name}.embedding.weight", (ratio_ids, tiles * width), "embed"), t.weight(f"{name}.gate", (1,), "norm")


def encoder(t: Tape, x: Tensor, name: str, n: int, sizes: tuple[Dim, Dim], mask: Tensor, *, gated: bool) -> Tensor:
    """A stack of ViT layers of so many heads and MLP width; the global one's residuals have gates."""
    heads, ffn = sizes
    d = Dim(int(x.shape[-1]) // int(heads), "vision_head_dim")
    with t.module(name), t.layers("layers", range(n), x, recomputed=False) as x:
        y = layer_norm(t, x, "input_layernorm")
        y = self_attention(t, y, heads=heads, kv_heads=heads, head_dim=d, rotary=False, cached=False, mask=mask)
        x = add(t, x, gate(t, y, "gate_attn") if gated else y)
        y = plain_mlp(t, layer_norm(t, x, "post_attention_layernorm"), ffn)
        return add(t, x, gate(t, y, "gate_ffn") if gated else y)


def gate(t: Tape, x: Tensor, name: str) -> Tensor:
    """x times the tanh of a learnt scalar."""
    return t.op(name, (x,), x.shape, weights=(t.weight(name, (1,), "norm"),), saves=(x,))
