"""OLMo 2, OLMo 3 and EXAONE 4: no norm before attention and MLP but one after each, and RMSNorms on q and k.

OLMo norms q and k over all heads together, in fp32 to the end, EXAONE each head. OLMo 3 and EXAONE 4 slide (4,096 tokens) in three layers
of four; EXAONE's full layers have no rotary positions, and `"sliding_window": null` makes all layers full, with them (EXAONE 4.0 1.2B).
"""

from __future__ import annotations

from functools import partial

from ..ops import add, embed, head, linear, rms_norm
from ..ops.norm_fp32 import rms_norm_fp32
from ..tape import Tape
from .blocks import gated_mlp
from .config import Config, groups
from .dense import attend, every, project, sizes, windows

MODEL_TYPES = ("olmo2", "olmo3", "exaone4")


def forward(t: Tape, c: Config) -> None:
    exaone = c.text("model_type") == "exaone4"
    s, bias = sizes(c, kv_heads=32 if exaone else None), c.flag("attention_bias") and not exaone
    q_width, k_width = (s.head_dim, s.head_dim) if exaone else (s.heads * s.head_dim, s.kv_heads * s.head_dim)
    norm = rms_norm if exaone else partial(rms_norm_fp32, gain=False)
    kinds = layer_windows(c, s.layers)
    slides = any(kinds)

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", s.vocab, s.hidden)
        for window, layers in groups(kinds):
            with t.layers("layers", layers, x) as x:
                with t.module("self_attn", x, part="attention"):
                    q, k, v = project(t, x, s, bias=bias)
                    q, k = norm(t, q, "q_norm", width=q_width), norm(t, k, "k_norm", width=k_width)
                    rotary = not (exaone and slides and window is None)
                    y = linear(t, attend(t, q, k, v, s, window=window, rotary=rotary), "o_proj", s.hidden, bias=bias)
                x = add(t, x, norm(t, y, "post_attention_layernorm"))
                x = add(t, x, norm(t, gated_mlp(t, x, s.ffn), "post_feedforward_layernorm"))
        x = norm(t, x, "norm")
    head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def layer_windows(c: Config, n: int) -> list[int | None]:
    """The sliding window of each layer; OLMo 2 has none."""
    if c.text("model_type") == "olmo2" or ("sliding_window" in c.raw and not c.raw["sliding_window"]):
        return [None] * n
    period = int(c.size("sliding_window_pattern", 4)) if c.text("model_type") == "exaone4" else 4
    return windows(c, c.size("sliding_window", 4096, label="window"), every(n, period))
