"""Gemma 3: five layers with a sliding window, then one that sees everything, and so on.

Unusual: four norms per layer (before and after attention and MLP), which stay in fp32 and scale by 1 + w; norms on queries and keys; an
embedding scaled by √hidden and always the head's matrix too. With images: SigLIP at 896 × 896, its 4,096 patches pooled to 256 tokens,
which all see each other.
EmbeddingGemma is the text model without a causal mask, and so without a cache.
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import add, embed, head, linear
from ..ops.norm_fp32 import rms_norm_fp32
from ..ops.scale import scale
from ..tape import Tape
from ..tensors import Tensor
from .blocks import gated_mlp, grouped_attention
from .checks import multiple
from .config import Config, groups
from .dense import every, windows
from .vision import siglip
from .vision_images import prefix_mask, scatter

MODEL_TYPES = ("gemma3", "gemma3_text")


def forward(t: Tape, c: Config) -> None:
    tied = c.flag("tie_word_embeddings", True)
    if c.text("model_type") == "gemma3_text":
        decoder(t, c, tied=tied)
        return
    text = c.sub("text_config")
    hidden, tokens = text.size("hidden_size", 2304, label="hidden"), c.size("mm_tokens_per_image", 256)

    def images(x: Tensor) -> Tensor:
        with t.aside():
            with t.tower("vision", runs=t.images > 0), t.module("vision_tower"):
                y = t.hold(siglip(t, c.sub("vision_config"), tokens=int(tokens)))
            return scatter(t, x, projected(t, y, tokens, hidden))

    t.merging = images
    with t.module("language_model"):
        decoder(t, text, tied=tied)


def projected(t: Tape, x: Tensor, tokens: Dim, hidden: Dim) -> Tensor:
    """Patches [images, 64 · 64, width], laid out as planes and pooled, normed, into the text model's width: [images, tokens, hidden]."""
    with t.tower("vision", part="projector", runs=t.images > 0), t.module("multi_modal_projector", x):
        planes = t.op("planes", (x,), x.shape)
        pooled = t.op("avg_pool", (planes,), (x.shape[0], tokens, x.shape[-1]), saves=(planes,))
        normed = rms_norm_fp32(t, pooled, "mm_soft_emb_norm")
        matrix = t.weight("mm_input_projection_weight", (x.shape[-1], hidden), "norm")
        return t.op("projection", (normed,), (x.shape[0], tokens, hidden), weights=(matrix,), saves=(normed,))


def decoder(t: Tape, c: Config, *, tied: bool) -> None:
    """The text model and its head. Defaults: Gemma3TextConfig."""
    hidden, vocab = c.size("hidden_size", 2304, label="hidden"), c.size("vocab_size", 262208, label="vocab")
    ffn = c.size("intermediate_size", 9216, label="ffn")
    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden, merges=False)
        x = t.merged(scale(t, x, "scaled"))
        for window, layers in groups(layer_windows(c)):
            with t.layers("layers", layers, x) as x:
                y = self_attention(t, rms_norm_fp32(t, x, "input_layernorm"), c, window)
                x = add(t, x, rms_norm_fp32(t, y, "post_attention_layernorm"))
                y = gated_mlp(t, rms_norm_fp32(t, x, "pre_feedforward_layernorm"), ffn)
                x = add(t, x, rms_norm_fp32(t, y, "post_feedforward_layernorm"))
        x = rms_norm_fp32(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if tied else None)


def layer_windows(c: Config) -> list[int | None]:
    """The sliding window of each layer; without a causal mask it reaches half as far to either side, so counts half."""
    n, period = c.layers(default=26), int(c.size("sliding_window_pattern", 6))
    window = c.size("sliding_window", 4096, label="window")
    if c.flag("use_bidirectional_attention"):
        window = window // 2 + 1
    return windows(c, window, every(n, period))


def self_attention(t: Tape, x: Tensor, c: Config, window: int | None) -> Tensor:
    """Grouped-query attention with norms on q and k: [b, s, hidden] -> [b, s, hidden]."""
    heads, kv_heads = c.size("num_attention_heads", 8, label="heads"), c.size("num_key_value_heads", 4, label="kv_heads")
    multiple(c, heads, kv_heads)
    d, bias = c.size("head_dim", 256), c.flag("attention_bias")
    causal = not c.flag("use_bidirectional_attention")
    with t.module("self_attn", x, part="attention"):
        q = linear(t, x, "q_proj", heads * d, bias=bias)
        k = linear(t, x, "k_proj", kv_heads * d, bias=bias)
        v = linear(t, x, "v_proj", kv_heads * d, bias=bias)
        q, k = rms_norm_fp32(t, q, "q_norm", width=d), rms_norm_fp32(t, k, "k_norm", width=d)
        mask = prefix_mask(t, window)
        y = grouped_attention(t, q, k, v, heads=heads, kv_heads=kv_heads, head_dim=d, window=window, cached=causal, mask=mask)
        return linear(t, y, "o_proj", x.shape[-1], bias=bias)
