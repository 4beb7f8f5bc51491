"""Falcon: attention and a plain MLP in parallel, q, k and v in one projection, LayerNorms, no biases elsewhere, tied.

7B has one key and value for all heads and one norm; 40B and 180B (`new_decoder_architecture`) `num_kv_heads` and a norm each; RW models
ALiBi, biases and a sequential block. With the new architecture transformers caches keys and values repeated to all heads
(5.23 `models/falcon/modeling_falcon.py`, `_split_heads`); serving engines cache `num_kv_heads`, and so do we.
"""

from __future__ import annotations

from dataclasses import replace

from ..dim import Dim
from ..ops import add, dropout, embed, head, layer_norm, linear
from ..tape import Tape
from .blocks import plain_mlp
from .config import Config
from .dense import attend, project, renamed, sizes

MODEL_TYPES = ("falcon",)


def forward(t: Tape, c: Config) -> None:
    new, parallel = c.flag("new_decoder_architecture"), c.flag("parallel_attn", True)
    common = renamed(
        c, n_embed="hidden_size", n_layer="num_hidden_layers", n_head="num_attention_heads", num_kv_heads="num_key_value_heads"
    )
    s = sizes(common, grouped=new, split=True, ffn=("ffn_hidden_size", 4))
    if not new and c.flag("multi_query", True):
        s = replace(s, kv_heads=Dim(1, "kv_heads"))
    bias, rotary = c.flag("bias"), not c.flag("alibi")
    between, after = c.share("attention_dropout"), c.share("hidden_dropout")
    t.attention_dropout = 0.0 if rotary else between  # so the class itself has it
    two_norms = parallel and int(c.size("num_ln_in_parallel_attn", 2 if new else 1)) == 2

    with t.module("transformer"):
        x, tokens = embed(t, "word_embeddings", s.vocab, s.hidden)
        with t.layers("h", range(s.layers), x) as x:
            y = layer_norm(t, x, "ln_attn" if two_norms else "input_layernorm")
            m = layer_norm(t, x, "ln_mlp") if two_norms else y
            with t.module("self_attention", y, part="attention"):
                q, k, v = project(t, y, s, bias=bias, stored="query_key_value")
                a = linear(t, attend(t, q, k, v, s, rotary=rotary, upcast=False, broadcast=True), "dense", s.hidden, bias=bias)
            if not parallel:
                x = add(t, x, dropout(t, a, between))
                m = layer_norm(t, x, "post_attention_layernorm")
            m = plain_mlp(t, m, s.ffn, bias=bias, names=("dense_h_to_4h", "dense_4h_to_h"))
            x = add(t, dropout(t, add(t, m, a) if parallel else m, after), x)
        x = layer_norm(t, x, "ln_f")
    head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings", True) else None)
