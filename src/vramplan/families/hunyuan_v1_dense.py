"""Hunyuan dense: Llama with RMSNorms on each head of q and k, after the rotary positions."""

from __future__ import annotations

from ..ops import add, embed, head, linear, rms_norm, rope
from ..tape import Tape
from .blocks import gated_mlp
from .config import Config
from .dense import attend, project, sizes

MODEL_TYPES = ("hunyuan_v1_dense",)


def forward(t: Tape, c: Config) -> None:
    s, bias = sizes(c), c.flag("attention_bias")

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", s.vocab, s.hidden)
        with t.layers("layers", range(s.layers), x) as x:
            y = rms_norm(t, x, "input_layernorm")
            with t.module("self_attn", y, part="attention"):
                q, k, v = project(t, y, s, bias=bias)
                q, k = rope(t, q, "q", s.head_dim), rope(t, k, "k", s.head_dim)
                q, k = rms_norm(t, q, "query_layernorm", width=s.head_dim), rms_norm(t, k, "key_layernorm", width=s.head_dim)
                y = linear(t, attend(t, q, k, v, s, rotary=False), "o_proj", s.hidden, bias=bias)
            x = add(t, x, y)
            x = add(t, x, gated_mlp(t, rms_norm(t, x, "post_attention_layernorm"), s.ffn))
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings") else None)
