"""DBRX: sixteen experts of which a token visits four, one fused and clipped q, k, v projection, LayerNorms without bias.

The checkpoint stores all experts' matrices as one [experts · ffn, hidden]; the tape notes an expert's `w2` as it is used, [hidden, ffn].
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import add, attention, dropout, embed, experts, head, layer_norm, linear, rope, route
from ..tape import Tape
from ..tensors import Tensor
from .blocks import cache_kv
from .checks import at_most, multiple
from .config import Config

MODEL_TYPES = ("dbrx",)


def forward(t: Tape, c: Config) -> None:
    hidden, vocab = c.size("d_model", 2048, label="hidden"), c.size("vocab_size", 32000, label="vocab")
    heads = c.size("n_heads", 16, label="heads")
    kv_heads = c.sub("attn_config").size("kv_n_heads", 1, label="kv_heads")
    ffn_config = c.sub("ffn_config")
    ffn = ffn_config.size("ffn_hidden_size", 3584, label="ffn")
    n_experts, top_k = ffn_config.size("moe_num_experts", 4, label="experts"), ffn_config.size("moe_top_k", 1, label="top_k")
    multiple(c, hidden, heads)
    multiple(c, heads, kv_heads)
    at_most(c, top_k, n_experts)
    dropped = c.share("resid_pdrop")
    t.attention_dropout = c.sub("attn_config").share("attn_pdrop")

    with t.module("transformer"):
        x, tokens = embed(t, "wte", vocab, hidden)
        with t.layers("blocks", range(c.layers("n_layers", 24)), x) as x:
            with t.module("norm_attn_norm", x):
                x = add(t, x, dropout(t, self_attention(t, layer_norm(t, x, "norm_1", bias=False), heads, kv_heads), dropped))
                y = layer_norm(t, x, "norm_2", bias=False)
            with t.module("ffn", y, part="experts"):
                y = experts(
                    t,
                    y,
                    route(t, y, "router.layer", n_experts),
                    ffn=ffn,
                    n_experts=n_experts,
                    top_k=top_k,
                    up=("experts.mlp.w1", "experts.mlp.v1"),
                    down="experts.mlp.w2",
                )
            x = add(t, x, dropout(t, y, dropped))
        x = layer_norm(t, x, "norm_f", bias=False)
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def self_attention(t: Tape, x: Tensor, heads: Dim, kv_heads: Dim) -> Tensor:
    """Grouped-query attention from one fused projection: [b, s, hidden] -> [b, s, hidden]. The clamp makes a copy of it."""
    hidden = x.shape[-1]
    d = Dim(hidden // heads, "head_dim")
    with t.module("attn", x, part="attention"):
        qkv = linear(t, x, "Wqkv", hidden + 2 * kv_heads * d)
        qkv = t.op("clip_qkv", (qkv,), qkv.shape, saves=(qkv,))
        q = rope(t, t.view(qkv, (*x.shape[:-1], heads * d)), "q", d)
        k = rope(t, t.view(qkv, (*x.shape[:-1], kv_heads * d)), "k", d)
        v = t.view(qkv, (*x.shape[:-1], kv_heads * d))
        cache_kv(t, kv_heads, d)
        y = attention(t, q, k, v, heads=heads, kv_heads=kv_heads)
        return linear(t, y, "out_proj", hidden)
