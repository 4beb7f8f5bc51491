"""Llama 3.2 Vision: Llama with cross-attention layers between, whose keys and values are those of the image.

Unusual: those layers cache the image's tokens (4 tiles of (560/14)² + 1 each), per sequence and not per text token, and only where there is
an image; without one, transformers skips them, though this walk lets the text through them. Their norm-and-gate scalars start at zero. The
tower has a global transformer behind the local one and hands on five intermediate layers too. Eight more embeddings than logits. Defaults:
MllamaTextConfig, MllamaVisionConfig (transformers 5.23 `models/mllama`).
"""

from __future__ import annotations

from ..ops import add, attention, embed, head, layer_norm, linear, rms_norm
from ..tape import Dim, Tape, Tensor, Weight
from .blocks import gated_mlp, plain_mlp, self_attention
from .checks import layer_set, multiple
from .config import Config, groups
from .vision import patch_conv, patch_grid

MODEL_TYPES = ("mllama",)


def forward(t: Tape, c: Config) -> None:
    text = c.sub("text_config")
    hidden, vocab = text.size("hidden_size", 4096, label="hidden"), text.size("vocab_size", 128256, label="vocab")
    heads, kv_heads = text.size("num_attention_heads", 32, label="heads"), text.size("num_key_value_heads", 8, label="kv_heads")
    d = Dim(int(multiple(text, hidden, heads)), "head_dim")
    multiple(text, heads, kv_heads)
    ffn = text.size("intermediate_size", 14336, label="ffn")
    crosses = layer_set(text, "cross_attention_layers", (3, 8, 13, 18, 23, 28, 33, 38))
    image = vision(t, c.sub("vision_config"), hidden)

    with t.module("language_model"):
        with t.module("model"):
            x, tokens = embed(t, "embed_tokens", vocab + 8, hidden)
            for cross, layers in groups(i in crosses for i in range(text.layers(default=40))):
                with t.layers("layers", layers, x) as x:
                    y = rms_norm(t, x, "input_layernorm")
                    if cross:
                        y = gate(t, cross_attention(t, y, image, heads, kv_heads, d), "cross_attn_attn_gate")
                    else:
                        y = self_attention(t, y, heads=heads, kv_heads=kv_heads, head_dim=d)
                    x = add(t, x, y)
                    y = gated_mlp(t, rms_norm(t, x, "post_attention_layernorm"), ffn)
                    x = add(t, x, gate(t, y, "cross_attn_mlp_gate") if cross else y)
            x = rms_norm(t, x, "norm")
        head(t, x, "lm_head", vocab, tied=tokens if text.flag("tie_word_embeddings") else None)


def gate(t: Tape, x: Tensor, name: str) -> Tensor:
    """x times the tanh of a learnt scalar."""
    return t.op(name, (x,), x.shape, weights=(t.weight(name, (1,), "norm"),), saves=(x,))


def cross_attention(t: Tape, x: Tensor, image: Dim, heads: Dim, kv_heads: Dim, d: Dim) -> Tensor:
    """Text asks, the image answers: [b, s, hidden] -> [b, s, hidden]; keys and values [image tokens, kv_heads, head_dim] per sequence."""
    hidden, width = x.shape[-1], kv_heads * d
    with t.module("cross_attn", x, part="attention"):
        for name in ("k_proj.weight", "v_proj.weight"):
            t.weight(name, (width, hidden), "linear")
        t.weight("k_norm.weight", (d,), "norm")
        with t.tower("vision"):
            k, v = (t.tensor(name, (x.shape[0], image, width)) for name in ("image_keys", "image_values"))
            t.cache("image keys", "k", (image, kv_heads, d), per="sequence")
            t.cache("image values", "v", (image, kv_heads, d), per="sequence")
        q = rms_norm(t, linear(t, x, "q_proj", heads * d), "q_norm", width=d)
        return linear(t, attention(t, q, k, v, heads=heads, kv_heads=kv_heads, past=False), "o_proj", hidden)


def vision(t: Tape, c: Config, hidden: Dim) -> Dim:
    """The tower and the projector; returns the tokens of one image, all tiles together."""
    width, ffn = c.size("hidden_size", 1280, label="vision_hidden"), c.size("intermediate_size", 5120, label="vision_ffn")
    heads, tiles = c.size("attention_heads", 16, label="vision_heads"), c.size("max_num_tiles", 4, label="tiles")
    multiple(c, width, heads)
    patches, side = patch_grid(c, 448, 14)
    ratios = c.items("supported_aspect_ratios")
    ratio_ids = Dim(9 if ratios is None else len(ratios) + 1, "aspect_ratios")
    tokens = patches + 1
    with t.tower("vision"):
        with t.module("vision_model"):
            x = patch_conv(t, c, "patch_embedding", width, patches, side, bias=False)
            x = t.op("tiles", (x,), (Dim(1), tiles * tokens, width), weights=position_tables(t, width, tokens, tiles, ratio_ids))
            x = layer_norm(t, x, "layernorm_pre")
            x = encoder(t, x, "transformer", c.layers(default=32), heads, ffn, gated=False)
            x = encoder(
                t, layer_norm(t, x, "layernorm_post"), "global_transformer", c.layers("num_global_layers", 8), heads, ffn, gated=True
            )
        joined = t.view(x, (Dim(1), tiles * tokens, c.size("vision_output_dim", 7680)))
        linear(t, joined, "multi_modal_projector", hidden, bias=True)
    return Dim(int(tiles * tokens), "image_tokens")


def position_tables(t: Tape, width: Dim, tokens: Dim, tiles: Dim, ratio_ids: Dim) -> tuple[Weight, ...]:
    """The class token, and gated position tables of patches, of tiles before and tiles after the local transformer."""
    return (
        t.weight("class_embedding", (width,), "norm"),
        t.weight("gated_positional_embedding.embedding", (tokens, width), "embed"),
        t.weight("gated_positional_embedding.gate", (1,), "norm"),
        t.weight("gated_positional_embedding.tile_embedding.weight", (ratio_ids, tiles * tokens * width), "embed"),
        *(
            t.weight(f"{place}_tile_positional_embedding.embedding.weight", (ratio_ids, tiles * width), "embed")
            for place in ("pre", "post")
        ),
        *(t.weight(f"{place}_tile_positional_embedding.gate", (1,), "norm") for place in ("pre", "post")),
    )


def encoder(t: Tape, x: Tensor, name: str, n: int, heads: Dim, ffn: Dim, *, gated: bool) -> Tensor:
    """A stack of ViT layers; the global one's residuals have gates."""
    d = Dim(int(x.shape[-1]) // int(heads), "vision_head_dim")
    with t.module(name), t.layers("layers", range(n), x) as x:
        y = layer_norm(t, x, "input_layernorm")
        y = self_attention(t, y, heads=heads, kv_heads=heads, head_dim=d, rotary=False, cached=False)
        x = add(t, x, gate(t, y, "gate_attn") if gated else y)
        y = plain_mlp(t, layer_norm(t, x, "post_attention_layernorm"), ffn)
        return add(t, x, gate(t, y, "gate_ffn") if gated else y)
