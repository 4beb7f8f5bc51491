"""MiMo-V2-Flash: five sliding layers to each full one, with twice its kv heads and a learned sink per head; values narrower than keys.

A token of a sliding layer sees `sliding_window_size` tokens before it and itself (129). The first layer is dense, the others have 256
experts and none shared. The MTP layers that it ships aren't loaded.
"""

from __future__ import annotations

from ..ops import add, attention, embed, head, linear, rms_norm, rope
from ..tape import Tape
from ..tensors import Tensor
from .blocks import cache_kv, gated_mlp, moe
from .checks import multiple
from .config import Config, groups

MODEL_TYPES = ("mimo_v2_flash",)


def forward(t: Tape, c: Config) -> None:
    hidden, vocab = c.size("hidden_size", 4096, label="hidden"), c.size("vocab_size", 152576, label="vocab")

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        for (sliding, sparse), layers in groups(layer_kinds(c)):
            with t.layers("layers", layers, x) as x:
                x = add(t, x, self_attention(t, rms_norm(t, x, "input_layernorm"), c, sliding))
                y = rms_norm(t, x, "post_attention_layernorm")
                if sparse:
                    y = moe(
                        t,
                        y,
                        ffn=c.size("moe_intermediate_size", 2048, label="moe_ffn"),
                        n_experts=c.size("n_routed_experts", 256, label="experts"),
                        top_k=c.size("num_experts_per_tok", 8, label="top_k"),
                        correction="gate.e_score_correction_bias",
                    )
                else:
                    y = gated_mlp(t, y, c.size("intermediate_size", 16384, label="ffn"))
                x = add(t, x, y)
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def layer_kinds(c: Config) -> list[tuple[bool, bool]]:
    """(sliding, sparse) of each layer: `layer_types` and `mlp_layer_types`, or the released config's lists of 0 and 1."""
    n = c.layers(default=48)
    sliding = [i > 0 and (i + 1) % 6 != 0 for i in range(n)]
    if (pattern := c.items("hybrid_layer_pattern")) is not None:
        sliding = [bool(p) for p in pattern]
    sparse = [i > 0 for i in range(n)] if (freq := c.items("moe_layer_freq")) is None else [bool(f) for f in freq]
    sliding_names = ["sliding_attention" if s else "full_attention" for s in sliding]
    sparse_names = ["sparse" if s else "dense" for s in sparse]
    attentions = c.kinds("layer_types", n, sliding_names, ("sliding_attention", "full_attention"))
    mlps = c.kinds("mlp_layer_types", n, sparse_names, ("sparse", "dense"))
    return [(a == "sliding_attention", m == "sparse") for a, m in zip(attentions, mlps, strict=True)]


def self_attention(t: Tape, x: Tensor, c: Config, sliding: bool) -> Tensor:
    """Grouped-query attention whose values are scaled: [b, s, hidden] -> [b, s, hidden]."""
    heads, kv_heads = c.size("num_attention_heads", 64, label="heads"), c.size("num_key_value_heads", 4, label="kv_heads")
    d, dv, bias, window = c.size("head_dim", 192), c.size("v_head_dim", 128), c.flag("attention_bias"), None
    if sliding:
        kv_heads = c.size("swa_num_key_value_heads", 2 * int(kv_heads), label="kv_heads")
        before = c.maybe("sliding_window_size", label="window")
        window = before + 1 if before else c.size("sliding_window", 129, label="window")
    multiple(c, heads, kv_heads)
    with t.module("self_attn", x, part="attention"):
        if sliding:
            t.weight("attention_sink_bias", (heads,), "norm")
        q = rope(t, linear(t, x, "q_proj", heads * d, bias=bias), "q", d)
        k = rope(t, linear(t, x, "k_proj", kv_heads * d, bias=bias), "k", d)
        v = linear(t, x, "v_proj", kv_heads * dv, bias=bias)
        v = t.op("v_scale", (v,), v.shape)
        cache_kv(t, kv_heads, d, dv, window=window)
        y = attention(t, q, k, v, heads=heads, kv_heads=kv_heads, window=window, sdpa=False)
        return linear(t, y, "o_proj", x.shape[-1])
