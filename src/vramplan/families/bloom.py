"""BLOOM: ALiBi biases instead of positions, a LayerNorm on the embedding, q, k and v in one projection, a plain MLP of 4·hidden, tied.

Names are those of BloomForCausalLM; BigScience's own files leave `transformer.` away.
"""

from __future__ import annotations

from ..ops import add, dropout, embed, head, layer_norm, linear
from ..tape import Tape
from .blocks import plain_mlp
from .config import Config
from .dense import attend, qkv_width, renamed, sizes, split

MODEL_TYPES = ("bloom",)


def forward(t: Tape, c: Config) -> None:
    common = renamed(c, n_embed="hidden_size", n_layer="num_hidden_layers", n_head="num_attention_heads")
    s = sizes(common, grouped=False, split=True, ffn=("n_inner", 4))
    dropped = c.share("hidden_dropout")

    with t.module("transformer"):
        x, tokens = embed(t, "word_embeddings", s.vocab, s.hidden)
        x = layer_norm(t, x, "word_embeddings_layernorm")
        with t.layers("h", range(s.layers), x) as x:
            y = layer_norm(t, x, "input_layernorm")
            with t.module("self_attention", y, part="attention"):
                q, k, v = split(t, linear(t, y, "query_key_value", qkv_width(s), bias=True), s)
                y = linear(t, attend(t, q, k, v, s, rotary=False), "dense", s.hidden, bias=True)
            x = add(t, x, dropout(t, y, dropped))
            y = plain_mlp(t, layer_norm(t, x, "post_attention_layernorm"), s.ffn, names=("dense_h_to_4h", "dense_4h_to_h"))
            x = add(t, x, dropout(t, y, dropped))
        x = layer_norm(t, x, "ln_f")
    head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings", True) else None)
