"""GLM-4.5 to 4.7 and Solar Open: a sigmoid router with a correction bias per expert, a shared expert, grouped-query attention.

GLM keeps the first `first_k_dense_replace` layers dense; Solar Open has experts in every layer. The MTP layer that GLM ships isn't loaded.
"""

from __future__ import annotations

from ..ops import add, embed, head, rms_norm
from ..tape import Tape
from .blocks import gated_mlp, head_dim, moe, self_attention
from .checks import at_most, multiple
from .config import Config, groups

MODEL_TYPES = ("glm4_moe", "solar_open")


def forward(t: Tape, c: Config) -> None:
    glm = c.text("model_type") == "glm4_moe"
    hidden, vocab = c.size("hidden_size", 4096, label="hidden"), c.size("vocab_size", 151552 if glm else 196608, label="vocab")
    heads = c.size("num_attention_heads", 96 if glm else 64, label="heads")
    kv_heads = c.size("num_key_value_heads", 8, label="kv_heads")
    d = head_dim(c, heads, hidden) if glm else c.size("head_dim", 128)
    moe_ffn = c.size("moe_intermediate_size", 1408 if glm else 1280, label="moe_ffn")
    n_experts, top_k = c.size("n_routed_experts", 128, label="experts"), c.size("num_experts_per_tok", 8, label="top_k")
    multiple(c, heads, kv_heads)
    at_most(c, top_k, n_experts)
    shared = c.size("n_shared_experts", 1, label="shared_experts", least=0)
    n, dense = c.layers(default=46 if glm else 48), c.size("first_k_dense_replace", 1, least=0) if glm else 0

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        for sparse, layers in groups(i >= dense for i in range(n)):
            with t.layers("layers", layers, x) as x:
                y = self_attention(
                    t,
                    rms_norm(t, x, "input_layernorm"),
                    heads=heads,
                    kv_heads=kv_heads,
                    head_dim=d,
                    bias=c.flag("attention_bias"),
                    qk_norm=glm and c.flag("use_qk_norm"),
                )
                x = add(t, x, y)
                y = rms_norm(t, x, "post_attention_layernorm")
                if sparse:
                    y = moe(
                        t,
                        y,
                        ffn=moe_ffn,
                        n_experts=n_experts,
                        top_k=top_k,
                        shared_ffn=moe_ffn * shared,
                        correction="gate.e_score_correction_bias",
                    )
                else:
                    y = gated_mlp(t, y, c.size("intermediate_size", 10944, label="ffn"))
                x = add(t, x, y)
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)
