"""LFM2: gated short convolutions of three tokens, and a few attention layers between; LFM2-MoE routes after its first dense layers.

Unusual: a convolution layer's state is two columns of width hidden, next to nothing. Widths of the MLP are adjusted from the config
(two thirds, rounded up to `block_multiple_of`); the head is tied; the last norm is called `embedding_norm`.
Source: transformers 5.23 `models/lfm2`, `models/lfm2_moe`.
"""

from __future__ import annotations

from ..dim import Dim
from ..errors import BadInput
from ..ops import add, attention, causal_conv, embed, head, linear, multiply, rms_norm, rope
from ..tape import Tape
from ..tensors import Tensor
from .blocks import cache_kv, gated_mlp, moe
from .checks import at_most, layer_set, multiple
from .config import Config, groups

MODEL_TYPES = ("lfm2", "lfm2_moe")

NAMES = ("w1", "w3", "w2")


def forward(t: Tape, c: Config) -> None:
    sparse = c.text("model_type") == "lfm2_moe"
    hidden, vocab = c.size("hidden_size", 2048 if sparse else 2560, label="hidden"), c.size("vocab_size", 65536, label="vocab")
    n = c.layers(default=32)
    dense = int(c.size("num_dense_layers", 2, least=0)) if sparse else n
    ffn = c.size("intermediate_size", 7168, label="ffn") if sparse else adjusted_ffn(c)

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        for (kind, routed), layers in groups((kind, i >= dense) for i, kind in enumerate(layer_kinds(c, n))):
            with t.layers("layers", layers, x) as x:
                y = rms_norm(t, x, "operator_norm")
                x = add(t, x, short_convolution(t, y, c) if kind == "conv" else self_attention(t, y, c))
                y = rms_norm(t, x, "ffn_norm")
                y = sparse_mlp(t, y, c) if routed else gated_mlp(t, y, ffn, names=NAMES, module="feed_forward")
                x = add(t, x, y)
        x = rms_norm(t, x, "embedding_norm")
    tied = c.flag("tie_embedding", c.flag("tie_word_embeddings", True))
    head(t, x, "lm_head", vocab, tied=tokens if tied else None)


def layer_kinds(c: Config, n: int) -> list[str]:
    """`conv` or `full_attention` for each layer; older configs list only the attention layers, `full_attn_idxs`."""
    attends = layer_set(c, "full_attn_idxs", range(n))
    default = ["full_attention" if i in attends else "conv" for i in range(n)]
    return c.kinds("layer_types", n, default, ("conv", "full_attention"))


def adjusted_ffn(c: Config) -> Dim:
    """`block_ff_dim` (older) or `intermediate_size`; two thirds of it, times a multiplier, rounded up, unless told not to."""
    ffn = c.size("block_ff_dim", int(c.size("intermediate_size", 12288)), label="ffn")
    if not c.flag("block_auto_adjust_ff_dim", True):
        return ffn
    multiplier, unit = c.raw.get("block_ffn_dim_multiplier", 1.0), int(c.size("block_multiple_of", 256))
    adjusted = int(2 * ffn / 3)
    if multiplier is None:
        return Dim(adjusted, "ffn")
    if isinstance(multiplier, bool) or not isinstance(multiplier, int | float) or not 0 < multiplier < 1000:
        raise BadInput(f"{c.path}: 'block_ffn_dim_multiplier' is {multiplier!r:.60}; it must be a number between 0 and 1000")
    return Dim(max(1, -(-int(multiplier * adjusted) // unit)) * unit, "ffn")


def short_convolution(t: Tape, x: Tensor, c: Config) -> Tensor:
    """C · conv(B · x), all three from one projection: [b, s, hidden] -> [b, s, hidden]."""
    bias, width = c.flag("conv_bias"), Dim(int(x.shape[-1]), "inner")
    shape = (*x.shape[:-1], width)
    with t.module("conv", x, part="attention"):
        both = linear(t, x, "in_proj", 3 * width, bias=bias)
        b, gate, value = (t.view(both, shape) for _ in range(3))
        y = causal_conv(t, multiply(t, b, value, "gated_in"), "conv", c.size("conv_L_cache", 3), bias=bias)
        return linear(t, multiply(t, gate, y, "gated_out"), "out_proj", x.shape[-1], bias=bias)


def self_attention(t: Tape, x: Tensor, c: Config) -> Tensor:
    """Grouped-query attention with norms on q and k: [b, s, hidden] -> [b, s, hidden]."""
    heads, kv_heads = c.size("num_attention_heads", 32, label="heads"), c.size("num_key_value_heads", 8, label="kv_heads")
    hidden = Dim(x.shape[-1], "hidden")
    d = Dim(int(multiple(c, hidden, heads)), "head_dim")
    multiple(c, heads, kv_heads)
    with t.module("self_attn", x, part="attention"):
        q = rms_norm(t, linear(t, x, "q_proj", heads * d), "q_layernorm", width=d)
        k = rms_norm(t, linear(t, x, "k_proj", kv_heads * d), "k_layernorm", width=d)
        v = linear(t, x, "v_proj", kv_heads * d)
        q, k = rope(t, q, "q", d), rope(t, k, "k", d)
        cache_kv(t, kv_heads, d)
        return linear(t, attention(t, q, k, v, heads=heads, kv_heads=kv_heads), "out_proj", hidden)


def sparse_mlp(t: Tape, x: Tensor, c: Config) -> Tensor:
    """LFM2-MoE's experts, with a routing bias that is a buffer."""
    n = c.size("num_experts", 32, label="experts")
    return moe(
        t,
        x,
        ffn=c.size("moe_intermediate_size", 1792, label="expert_ffn"),
        n_experts=n,
        top_k=at_most(c, c.size("num_experts_per_tok", 4, label="top_k"), n),
        up=("experts.{e}.w1.weight", "experts.{e}.w3.weight"),
        down="experts.{e}.w2.weight",
        correction="expert_bias" if c.flag("use_expert_bias", True) else None,
        module="feed_forward",
    )
