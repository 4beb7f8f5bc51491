"""Granite 4: nine Mamba-2 layers to one of attention, each with a shared MLP and, in the larger ones, routed experts beside it.

Unusual: attention without positions (`position_embedding_type` "nope") in the hybrids, the checkpoint's fused gate-and-up matrices of
Granite MoE; the smallest have attention only, and `num_local_experts` 0 means no experts. Source: transformers 5.23
`models/granitemoehybrid`.
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import add, embed, head, rms_norm
from ..ops.scale import scale
from ..tape import Tape
from .blocks import self_attention
from .checks import at_most, multiple
from .config import Config, groups
from .dense import fused_mlp
from .granitemoe import fused_moe
from .mamba import grouped_mamba2

MODEL_TYPES = ("granitemoehybrid",)

KINDS = {"mamba": "mamba", "linear_attention": "mamba", "attention": "attention", "full_attention": "attention"}


def forward(t: Tape, c: Config) -> None:
    hidden, vocab = c.size("hidden_size", 4096, label="hidden"), c.size("vocab_size", 32000, label="vocab")
    heads = c.size("num_attention_heads", 32, label="heads")
    kv_heads = c.size("num_key_value_heads", int(heads), label="kv_heads")
    d = Dim(int(multiple(c, hidden, heads)), "head_dim")
    multiple(c, heads, kv_heads)
    n_experts, shared_ffn = (
        c.size("num_local_experts", 8, label="experts", least=0),
        c.size("shared_intermediate_size", 1024, label="shared_ffn"),
    )
    bias = c.flag("attention_bias")

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        x = scale(t, x, "embedding_multiplier")
        for kind, layers in groups(layer_kinds(c)):
            with t.layers("layers", layers, x) as x:
                y = rms_norm(t, x, "input_layernorm")
                if kind == "mamba":
                    inner = c.size("mamba_expand", 2) * hidden
                    y = grouped_mamba2(t, y, c, inner=inner, heads=128, state=256, out_bias=c.flag("mamba_proj_bias"))
                else:
                    rotary = c.text("position_embedding_type", "nope") == "rope"
                    y = self_attention(t, y, heads=heads, kv_heads=kv_heads, head_dim=d, bias=bias, out_bias=bias, rotary=rotary)
                x = add(t, x, scale(t, y, "residual_multiplier"))
                y = rms_norm(t, x, "post_attention_layernorm")
                shared = fused_mlp(t, y, shared_ffn, names=("input_linear", "output_linear"), module="shared_mlp")
                if n_experts:
                    ffn = c.size("intermediate_size", 11008, label="ffn")
                    top_k = at_most(c, c.size("num_experts_per_tok", 2, label="top_k"), n_experts)
                    shared = add(t, fused_moe(t, y, ffn=ffn, n_experts=n_experts, top_k=top_k), shared, "shared")
                x = add(t, x, scale(t, shared, "residual_multiplier"))
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def layer_kinds(c: Config) -> list[str]:
    """`mamba` or `attention` for each layer: `layer_types`, or `layers_block_type` in older configs; all Mamba where neither is given."""
    n = c.layers(default=32)
    key = "layer_types" if c.has("layer_types") else "layers_block_type"
    return [KINDS[kind] for kind in c.kinds(key, n, ["mamba"] * n, KINDS)]
