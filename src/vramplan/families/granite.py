"""Granite: Llama with four constants, on the embedding, both branches, the attention's scores and the logits.

Each is a product that makes a tensor, of which the scaled logits are large.
"""

from __future__ import annotations

from ..ops import add, embed, head, linear, rms_norm
from ..ops.scale import scale
from ..tape import Tape
from .blocks import gated_mlp
from .config import Config
from .dense import attend, project, sizes

MODEL_TYPES = ("granite",)


def forward(t: Tape, c: Config) -> None:
    s, bias = sizes(c), c.flag("attention_bias")

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", s.vocab, s.hidden)
        x = scale(t, x, "embedding_multiplier")
        with t.layers("layers", range(s.layers), x) as x:
            y = rms_norm(t, x, "input_layernorm")
            with t.module("self_attn", y, part="attention"):
                q, k, v = project(t, y, s, bias=bias)
                y = linear(t, attend(t, q, k, v, s), "o_proj", s.hidden, bias=bias)
            x = add(t, x, scale(t, y, "residual_multiplier"))
            y = gated_mlp(t, rms_norm(t, x, "post_attention_layernorm"), s.ffn, bias=c.flag("mlp_bias"))
            x = add(t, x, scale(t, y, "residual_multiplier"))
        x = rms_norm(t, x, "norm")
    logits = head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings") else None)
    scale(t, logits, "logits_scaling")
