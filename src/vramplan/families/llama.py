"""Llama and the families that differ from it only in a bias, a window, a norm on q and k, or a layer list.

RMSNorm before attention and before a gated MLP, rotary positions, grouped-query attention, an untied head unless the config ties it.
"""

from __future__ import annotations

from ..ops import add, embed, head, rms_norm
from ..tape import Tape
from .blocks import gated_mlp, head_dim, self_attention
from .config import Config, groups

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")


def forward(t: Tape, c: Config) -> None:
    kind = c.text("model_type")
    hidden, vocab = c.size("hidden_size", label="hidden"), c.size("vocab_size", label="vocab")
    heads = c.size("num_attention_heads", label="heads")
    kv_heads = c.size("num_key_value_heads", int(heads), label="kv_heads")
    ffn, d = c.size("intermediate_size", label="ffn"), head_dim(c, heads, hidden)
    bias = kind == "qwen2" or c.flag("attention_bias")

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        for window, layers in groups(windows(c, kind)):
            with t.layers("layers", layers, x) as x:
                y = rms_norm(t, x, "input_layernorm")
                y = self_attention(
                    t,
                    y,
                    heads=heads,
                    kv_heads=kv_heads,
                    head_dim=d,
                    bias=bias,
                    out_bias=bias and kind != "qwen2",
                    qk_norm=kind == "qwen3",
                    window=window,
                )
                x = add(t, x, y)
                y = gated_mlp(t, rms_norm(t, x, "post_attention_layernorm"), ffn, bias=c.flag("mlp_bias"))
                x = add(t, x, y)
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def windows(c: Config, kind: str) -> list[int | None]:
    """The sliding window of each layer. Qwen2 and Qwen3 slide only with `use_sliding_window`, and from layer `max_window_layers` on."""
    n, window = c.layers(), c.maybe("sliding_window", label="window")
    if window is None or (kind in ("qwen2", "qwen3") and not c.flag("use_sliding_window")):
        return [None] * n
    first = int(c.size("max_window_layers", 28, least=0)) if kind in ("qwen2", "qwen3") else 0
    default = ["sliding_attention" if i >= first else "full_attention" for i in range(n)]
    kinds = c.kinds("layer_types", n, default, ("sliding_attention", "full_attention"))
    return [window if k == "sliding_attention" else None for k in kinds]
