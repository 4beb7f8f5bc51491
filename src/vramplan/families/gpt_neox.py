"""GPT-NeoX (Pythia): q, k and v in one projection, LayerNorms, attention and MLP in parallel on norms of their own, biases everywhere.

The head is called `embed_out` in checkpoints.
"""

from __future__ import annotations

from ..ops import add, dropout, embed, head, layer_norm, linear
from ..tape import Tape
from .blocks import plain_mlp
from .config import Config
from .dense import attend, project, sizes

MODEL_TYPES = ("gpt_neox",)


def forward(t: Tape, c: Config) -> None:
    s = sizes(c, grouped=False, split=True)
    bias, parallel = c.flag("attention_bias", True), c.flag("use_parallel_residual", True)
    dropped = c.share("hidden_dropout")

    with t.module("gpt_neox"):
        x, tokens = embed(t, "embed_in", s.vocab, s.hidden)
        x = dropout(t, x, dropped)
        with t.layers("layers", range(s.layers), x) as x:
            y = layer_norm(t, x, "input_layernorm")
            with t.module("attention", y, part="attention"):
                q, k, v = project(t, y, s, bias=bias, stored="query_key_value")
                y = linear(t, attend(t, q, k, v, s, rotary="joined"), "dense", s.hidden, bias=bias)
            y = dropout(t, y, dropped)
            between = x if parallel else add(t, x, y)
            m = plain_mlp(t, layer_norm(t, between, "post_attention_layernorm"), s.ffn, names=("dense_h_to_4h", "dense_4h_to_h"))
            m = dropout(t, m, dropped)
            x = add(t, add(t, m, y), x) if parallel else add(t, m, between)
        x = layer_norm(t, x, "final_layer_norm")
    head(t, x, "embed_out", s.vocab, tied=tokens if c.flag("tie_word_embeddings") else None)
