"""Phi-3, 3.5 and 4: Llama with q, k and v in one projection, gate and up in another, and a sliding window in all layers or none."""

from __future__ import annotations

from ..ops import add, dropout, embed, head, linear, rms_norm
from ..tape import Tape
from .config import Config
from .dense import attend, fused_mlp, project, sizes

MODEL_TYPES = ("phi3",)


def forward(t: Tape, c: Config) -> None:
    s, window = sizes(c), c.maybe("sliding_window", label="window")
    dropped = c.share("resid_pdrop")

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", s.vocab, s.hidden)
        with t.layers("layers", range(s.layers), x) as x:
            y = rms_norm(t, x, "input_layernorm")
            with t.module("self_attn", y, part="attention"):
                q, k, v = project(t, y, s, stored="qkv_proj")
                y = linear(t, attend(t, q, k, v, s, window=window, rotary="joined"), "o_proj", s.hidden)
            x = add(t, x, dropout(t, y, dropped))
            x = add(t, x, dropout(t, fused_mlp(t, rms_norm(t, x, "post_attention_layernorm"), s.ffn), dropped))
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings") else None)
