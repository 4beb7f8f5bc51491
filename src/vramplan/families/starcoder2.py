"""StarCoder2: grouped-query attention with rotary positions, LayerNorms, a plain MLP, biases but in the head, an optional window."""

from __future__ import annotations

from ..ops import add, dropout, embed, head, layer_norm, linear
from ..tape import Tape
from .blocks import plain_mlp
from .config import Config
from .dense import attend, project, sizes

MODEL_TYPES = ("starcoder2",)


def forward(t: Tape, c: Config) -> None:
    s, bias, window = sizes(c, kv_heads=2), c.flag("use_bias", True), c.maybe("sliding_window", label="window")
    dropped = c.share("residual_dropout")

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", s.vocab, s.hidden)
        x = dropout(t, x, c.share("embedding_dropout"))
        with t.layers("layers", range(s.layers), x) as x:
            y = layer_norm(t, x, "input_layernorm")
            with t.module("self_attn", y, part="attention"):
                q, k, v = project(t, y, s, bias=bias)
                y = linear(t, attend(t, q, k, v, s, window=window), "o_proj", s.hidden, bias=bias)
            x = add(t, x, dropout(t, y, dropped))
            y = plain_mlp(t, layer_norm(t, x, "post_attention_layernorm"), s.ffn, bias=bias, names=("c_fc", "c_proj"))
            x = add(t, x, dropout(t, y, dropped))
        x = layer_norm(t, x, "norm")
    head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings", True) else None)
