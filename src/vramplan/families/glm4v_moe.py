"""GLM-4.5V and 4.6V: GLM-4.5-Air's text model behind a vision tower of Llama-like blocks.

Unusual: the tower's MLPs are as wide as the text model, its 2 × 2 patches are merged by a strided convolution, and a gated MLP follows.
Defaults: Glm4vMoeTextConfig, Glm4vMoeVisionConfig (transformers 5.23 `models/glm4v_moe`).
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import activation, add, embed, head, layer_norm, linear, rms_norm
from ..tape import Tape
from .blocks import gated_mlp, head_dim, moe, self_attention
from .checks import at_most, multiple
from .config import Config, groups
from .qwen_vision import blocks, patch_embedding
from .vision import patch_grid

MODEL_TYPES = ("glm4v_moe",)


def forward(t: Tape, c: Config) -> None:
    tower(t, c.sub("vision_config"))
    text = c.sub("text_config")
    hidden, vocab = text.size("hidden_size", 4096, label="hidden"), text.size("vocab_size", 151424, label="vocab")
    heads, kv_heads = text.size("num_attention_heads", 96, label="heads"), text.size("num_key_value_heads", 8, label="kv_heads")
    multiple(text, heads, kv_heads)
    n_experts = text.size("n_routed_experts", 128, label="experts")
    top_k = at_most(text, text.size("num_experts_per_tok", 8, label="top_k"), n_experts)
    moe_ffn, shared = text.size("moe_intermediate_size", 1408, label="moe_ffn"), text.size("n_shared_experts", 1, label="shared_experts")
    dense = text.size("first_k_dense_replace", 1, least=0)

    with t.module("model.language_model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        for sparse, layers in groups(i >= dense for i in range(text.layers(default=46))):
            with t.layers("layers", layers, x) as x:
                y = rms_norm(t, x, "input_layernorm")
                d, bias = head_dim(text, heads, hidden), text.flag("attention_bias", True)
                x = add(t, x, self_attention(t, y, heads=heads, kv_heads=kv_heads, head_dim=d, bias=bias))
                y = rms_norm(t, x, "post_attention_layernorm")
                if sparse:
                    correction = "gate.e_score_correction_bias"
                    y = moe(t, y, ffn=moe_ffn, n_experts=n_experts, top_k=top_k, shared_ffn=moe_ffn * shared, correction=correction)
                else:
                    y = gated_mlp(t, y, text.size("intermediate_size", 10944, label="ffn"))
                x = add(t, x, y)
        x = rms_norm(t, x, "norm")
    tied = c.flag("tie_word_embeddings") or text.flag("tie_word_embeddings")
    head(t, x, "lm_head", vocab, tied=tokens if tied else None)


def tower(t: Tape, c: Config) -> None:
    """Conv3d patches, positions of a fixed grid, blocks, a strided convolution, a gated MLP."""
    width, out = c.size("hidden_size", 1536, label="vision_hidden"), c.size("out_hidden_size", 4096)
    side = c.size("spatial_merge_size", 2)
    grid, _ = patch_grid(c, 336, 14)
    bias = c.flag("attention_bias")
    with t.tower("vision"), t.module("model.visual"):
        x = rms_norm(t, patch_embedding(t, c, width, patch=14, bias=True), "post_conv_layernorm")
        table = t.weight("embeddings.position_embedding.weight", (grid, width), "embed")
        x = t.op("positions", (x,), x.shape, weights=(table,))
        x = blocks(t, c, x, depth=24, norm=rms_norm, mlp=lambda t, y: gated_mlp(t, y, out), heads=12, biases=(bias, False))
        x = rms_norm(t, x, "post_layernorm")
        kernel = t.weight("downsample.weight", (out, width, side, side), "conv"), t.weight("downsample.bias", (out,), "conv")
        x = t.op("downsample", (x,), (Dim(1), x.shape[1] // (side * side), out), weights=kernel)
        with t.module("merger", x):
            y = activation(t, layer_norm(t, linear(t, x, "proj", out), "post_projection_norm"))
            gated_mlp(t, y, c.size("intermediate_size", 13696, label="vision_ffn"), module="")
