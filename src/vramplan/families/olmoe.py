"""OLMoE and FlexOlmo: small experts in every layer, and RMSNorms over the whole of q and of k rather than each head.

OLMoE norms before attention and MLP, FlexOlmo (as OLMo 2) after them.
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import add, embed, head, linear, rms_norm
from ..tape import Tape
from ..tensors import Tensor
from .blocks import grouped_attention, head_dim, moe
from .checks import at_most, multiple
from .config import Config

MODEL_TYPES = ("olmoe", "flex_olmo")


def forward(t: Tape, c: Config) -> None:
    flex = c.text("model_type") == "flex_olmo"
    hidden = c.size("hidden_size", 4096 if flex else 2048, label="hidden")
    vocab = c.size("vocab_size", 100352 if flex else 50304, label="vocab")
    heads = c.size("num_attention_heads", 32 if flex else 16, label="heads")
    kv_heads = c.size("num_key_value_heads", int(heads), label="kv_heads")
    ffn = c.size("intermediate_size", 11008 if flex else 2048, label="ffn")
    n_experts = c.size("num_experts", 7 if flex else 64, label="experts")
    top_k = c.size("num_experts_per_tok", 5 if flex else 8, label="top_k")
    multiple(c, heads, kv_heads)
    at_most(c, top_k, n_experts)
    d, bias = head_dim(c, heads, hidden), c.flag("attention_bias")

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        with t.layers("layers", range(c.layers(default=32 if flex else 16)), x) as x:
            if flex:
                y = whole_norm_attention(t, x, heads, kv_heads, d, bias=bias)
                x = add(t, x, rms_norm(t, y, "post_attention_layernorm"))
                y = moe(t, x, ffn=ffn, n_experts=n_experts, top_k=top_k, normalised=c.flag("norm_topk_prob"))
                x = add(t, x, rms_norm(t, y, "post_feedforward_layernorm"))
            else:
                y = whole_norm_attention(t, rms_norm(t, x, "input_layernorm"), heads, kv_heads, d, bias=bias)
                x = add(t, x, y)
                y = moe(
                    t,
                    rms_norm(t, x, "post_attention_layernorm"),
                    ffn=ffn,
                    n_experts=n_experts,
                    top_k=top_k,
                    normalised=c.flag("norm_topk_prob"),
                )
                x = add(t, x, y)
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def whole_norm_attention(t: Tape, x: Tensor, heads: Dim, kv_heads: Dim, d: Dim, *, bias: bool = False) -> Tensor:
    """Grouped-query attention with RMSNorms over all of q and all of k: [b, s, hidden] -> [b, s, hidden]."""
    with t.module("self_attn", x, part="attention"):
        q = rms_norm(t, linear(t, x, "q_proj", heads * d, bias=bias), "q_norm")
        k = rms_norm(t, linear(t, x, "k_proj", kv_heads * d, bias=bias), "k_norm")
        v = linear(t, x, "v_proj", kv_heads * d, bias=bias)
        y = grouped_attention(t, q, k, v, heads=heads, kv_heads=kv_heads, head_dim=d)
        return linear(t, y, "o_proj", x.shape[-1], bias=bias)
