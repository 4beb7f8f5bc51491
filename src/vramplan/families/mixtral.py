"""Mixtral and Phi-3.5-MoE: every layer's MLP is a mixture of experts of which a token visits two; a window slides in all layers or in none.

Phi-MoE differs in LayerNorms with biases for RMSNorms, and in biases on the projections and on the head.
"""

from __future__ import annotations

from ..ops import add, embed, head, layer_norm, rms_norm
from ..tape import Tape
from .blocks import head_dim, moe, self_attention
from .checks import at_most, multiple
from .config import Config

MODEL_TYPES = ("mixtral", "phimoe")


def forward(t: Tape, c: Config) -> None:
    phi = c.text("model_type") == "phimoe"
    norm = layer_norm if phi else rms_norm
    hidden, vocab = c.size("hidden_size", 4096, label="hidden"), c.size("vocab_size", 32064 if phi else 32000, label="vocab")
    heads, kv_heads = c.size("num_attention_heads", 32, label="heads"), c.size("num_key_value_heads", 8, label="kv_heads")
    ffn = c.size("intermediate_size", 6400 if phi else 14336, label="ffn")
    n_experts = c.size("num_local_experts", 16 if phi else 8, label="experts")
    top_k = c.size("num_experts_per_tok", 2, label="top_k")
    multiple(c, heads, kv_heads)
    at_most(c, top_k, n_experts)
    bias = phi and c.flag("attention_bias")

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        with t.layers("layers", range(c.layers(default=32)), x) as x:
            y = norm(t, x, "input_layernorm")
            y = self_attention(
                t,
                y,
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim(c, heads, hidden),
                bias=bias,
                out_bias=bias,
                window=c.maybe("sliding_window", label="window"),
            )
            x = add(t, x, y)
            y = moe(
                t,
                norm(t, x, "post_attention_layernorm"),
                ffn=ffn,
                n_experts=n_experts,
                top_k=top_k,
                up=("experts.{e}.w1.weight", "experts.{e}.w3.weight"),
                down="experts.{e}.w2.weight",
                normalised=not phi,
                fp32_weights=not phi,
                module="block_sparse_moe",
            )
            x = add(t, x, y)
        x = norm(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None, bias=phi and c.flag("lm_head_bias"))
