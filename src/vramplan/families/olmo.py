"""OLMo: Llama whose LayerNorms have neither weight nor bias."""

from __future__ import annotations

from ..ops import add, embed, head, linear
from ..ops.layer_norm_fp32 import layer_norm_fp32
from ..tape import Tape
from .blocks import gated_mlp
from .config import Config
from .dense import attend, project, sizes

MODEL_TYPES = ("olmo",)


def forward(t: Tape, c: Config) -> None:
    s, bias = sizes(c), c.flag("attention_bias")

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", s.vocab, s.hidden)
        with t.layers("layers", range(s.layers), x) as x:
            y = layer_norm_fp32(t, x, "input_layernorm", weight=False)
            with t.module("self_attn", y, part="attention"):
                q, k, v = project(t, y, s, bias=bias)
                y = linear(t, attend(t, q, k, v, s), "o_proj", s.hidden, bias=bias)
            x = add(t, x, y)
            x = add(t, x, gated_mlp(t, layer_norm_fp32(t, x, "post_attention_layernorm", weight=False), s.ffn))
        x = layer_norm_fp32(t, x, "norm", weight=False)
    head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings") else None)
