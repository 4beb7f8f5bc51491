"""Hunyuan-A13B: experts in every layer beside one shared MLP, an fp32 router, RMSNorms on q and k after their rotation.

The released config gives some sizes as a list with one entry per layer, all equal; unequal ones are refused. Cross-layer attention, which
the original code has, isn't in transformers nor used by what was released.
"""

from __future__ import annotations

from ..dim import Dim
from ..errors import BadInput
from ..ops import add, attention, embed, experts, head, linear, rms_norm, rope, route
from ..tape import Tape
from ..tensors import Tensor
from .blocks import cache_kv, gated_mlp, head_dim
from .checks import at_most, multiple
from .config import Config

MODEL_TYPES = ("hunyuan_v1_moe",)


def forward(t: Tape, c: Config) -> None:
    hidden, vocab = c.size("hidden_size", 4096, label="hidden"), c.size("vocab_size", 290943, label="vocab")
    heads = c.size("num_attention_heads", 32, label="heads")
    kv_heads = c.size("num_key_value_heads", int(heads), label="kv_heads")
    ffn = c.size("intermediate_size", 11008, label="ffn")
    n_experts, top_k = each(c, "num_experts", 1, "experts"), each(c, "moe_topk", 1, "top_k")
    multiple(c, heads, kv_heads)
    at_most(c, top_k, n_experts)

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        with t.layers("layers", range(c.layers(default=32)), x) as x:
            y = self_attention(t, rms_norm(t, x, "input_layernorm"), heads, kv_heads, head_dim(c, heads, hidden), c.flag("attention_bias"))
            x = add(t, x, y)
            y = rms_norm(t, x, "post_attention_layernorm")
            with t.module("mlp", y, part="experts"):
                shared = gated_mlp(t, y, ffn * each(c, "num_shared_expert", 1), module="shared_mlp")
                y = experts(
                    t,
                    y,
                    route(t, y, "gate.wg", n_experts, dtype="fp32"),
                    ffn=ffn,
                    n_experts=n_experts,
                    top_k=top_k,
                    up=("experts.{e}.gate_proj.weight", "experts.{e}.up_proj.weight"),
                    down="experts.{e}.down_proj.weight",
                )
                y = add(t, y, shared, "shared")
            x = add(t, x, y)
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def each(c: Config, key: str, default: int, label: str = "") -> Dim:
    """A size that all layers share, given once or once per layer."""
    value = c.raw.get(key)
    if not isinstance(value, list):
        return c.size(key, default, label=label)
    if not value or any(v != value[0] for v in value):
        raise BadInput(f"{c.path}: {key!r} differs from layer to layer; only models with the same in all layers are known")
    return Config({key: value[0]}, c.path).size(key, label=label)


def self_attention(t: Tape, x: Tensor, heads: Dim, kv_heads: Dim, d: Dim, bias: bool) -> Tensor:
    """Grouped-query attention with norms on q and k after their rotation: [b, s, hidden] -> [b, s, hidden]."""
    with t.module("self_attn", x, part="attention"):
        q = rope(t, linear(t, x, "q_proj", heads * d, bias=bias), "q", d)
        k = rope(t, linear(t, x, "k_proj", kv_heads * d, bias=bias), "k", d)
        v = linear(t, x, "v_proj", kv_heads * d, bias=bias)
        q, k = rms_norm(t, q, "query_layernorm", width=d), rms_norm(t, k, "key_layernorm", width=d)
        cache_kv(t, kv_heads, d)
        y = attention(t, q, k, v, heads=heads, kv_heads=kv_heads)
        return linear(t, y, "o_proj", x.shape[-1], bias=bias)
