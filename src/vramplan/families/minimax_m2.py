"""MiniMax-M2: 256 small experts in every layer, a sigmoid router with a correction bias, RMSNorms over the whole of q and of k.

Full attention everywhere (`attn_type_list` is all ones in what was released). The MTP modules that it ships aren't loaded.
"""

from __future__ import annotations

from ..ops import add, embed, head, rms_norm
from ..tape import Tape
from .blocks import moe
from .checks import at_most, multiple
from .config import Config
from .olmoe import whole_norm_attention

MODEL_TYPES = ("minimax_m2",)


def forward(t: Tape, c: Config) -> None:
    hidden, vocab = c.size("hidden_size", 3072, label="hidden"), c.size("vocab_size", 200064, label="vocab")
    heads, kv_heads = c.size("num_attention_heads", 48, label="heads"), c.size("num_key_value_heads", 8, label="kv_heads")
    d = c.size("head_dim", 128)
    n_experts, top_k = c.size("num_local_experts", 256, label="experts"), c.size("num_experts_per_tok", 8, label="top_k")
    multiple(c, heads, kv_heads)
    at_most(c, top_k, n_experts)

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        with t.layers("layers", range(c.layers(default=62)), x) as x:
            x = add(t, x, whole_norm_attention(t, rms_norm(t, x, "input_layernorm"), heads, kv_heads, d))
            y = moe(
                t,
                rms_norm(t, x, "post_attention_layernorm"),
                ffn=c.size("intermediate_size", 1536, label="ffn"),
                n_experts=n_experts,
                top_k=top_k,
                up=("experts.{e}.w1.weight", "experts.{e}.w3.weight"),
                down="experts.{e}.w2.weight",
                correction="e_score_correction_bias",
                module="block_sparse_moe",
            )
            x = add(t, x, y)
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)
