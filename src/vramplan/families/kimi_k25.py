"""Kimi-VL, and Kimi K2.5 to K2.7: DeepSeek-V3's text model, and MoonViT, a vision tower with one fused q, k, v projection.

The tower merges 2 × 2 patches into one token (frames are averaged), which a two-layer projector brings to the text's width. The released
config prefixes the tower's sizes with `vt_`.
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import activation, add, attention, layer_norm, linear, rope
from ..tape import Tape
from ..tensors import Tensor
from . import deepseek
from .blocks import plain_mlp
from .checks import multiple
from .config import Config
from .vision import patch_conv

MODEL_TYPES = ("kimi_k25", "kimi_vl")


def forward(t: Tape, c: Config) -> None:
    text = c.sub("text_config")
    if text.raw.get("model_type", "kimi_k2") == "kimi_k2":
        text = Config({**text.raw, "model_type": "deepseek_v3"}, text.path)
    with t.tower("vision"):
        vision(t, c.sub("vision_config"), text.size("hidden_size", 7168, label="hidden"))
    with t.module("language_model"):
        deepseek.forward(t, text)


def vision(t: Tape, c: Config, hidden: Dim) -> None:
    """MoonViT and the projector: an image of the stored grid's size, [1, patches, width] -> [1, patches/4, hidden]."""
    width, ffn = size(c, "hidden_size", 1152, "vision_hidden"), size(c, "intermediate_size", 4304, "vision_ffn")
    heads, n = size(c, "num_attention_heads", 16, "vision_heads"), c.layers(key(c, "num_hidden_layers"), 27)
    rows, columns = c.size("init_pos_emb_height", 64), c.size("init_pos_emb_width", 64)
    d = Dim(multiple(c, width, heads), "vision_head_dim")
    with t.module("vision_tower"):
        with t.module("patch_embed"):
            x = patch_conv(t, c, "proj", width, Dim(rows * columns, "patches"), c.size("patch_size", 14), bias=True)
            x = t.op("pos_emb", (x,), x.shape, weights=(t.weight("pos_emb.weight", (rows, columns, width), "norm"),))
        with t.module("encoder"):
            with t.layers("blocks", range(n), x) as x:
                x = add(t, x, fused_attention(t, layer_norm(t, x, "norm0"), heads, d))
                x = add(t, x, plain_mlp(t, layer_norm(t, x, "norm1"), ffn, names=("fc0", "fc1")))
            x = layer_norm(t, x, "final_layernorm")
    with t.module("mm_projector"):
        x = layer_norm(t, x, "pre_norm")
        x = t.view(x, (x.shape[0], x.shape[1] // 4, 4 * width))
        x = activation(t, linear(t, x, "proj.0", 4 * width, bias=True))
        linear(t, x, "proj.2", hidden, bias=True)


def size(c: Config, name: str, default: int, label: str) -> Dim:
    """A size of the tower."""
    return c.size(key(c, name), default, label=label)


def key(c: Config, name: str) -> str:
    """What the config calls it: `vt_…` in the released one, the bare name in transformers' own."""
    return f"vt_{name}" if c.has(f"vt_{name}") else name


def fused_attention(t: Tape, x: Tensor, heads: Dim, d: Dim) -> Tensor:
    """Attention among all patches from one projection: [1, patches, width] -> [1, patches, width]."""
    width = x.shape[-1]
    qkv = linear(t, x, "wqkv", 3 * width, bias=True)
    q, k = rope(t, t.view(qkv, x.shape), "q"), rope(t, t.view(qkv, x.shape), "k")
    y = attention(t, q, k, t.view(qkv, x.shape), heads=heads, kv_heads=heads, past=False)
    return linear(t, y, "wo", width, bias=True)
