"""Gemma and Gemma 2: a wide gated MLP, heads wider than hidden / heads, a tied embedding scaled by √hidden, norms that stay in fp32.

Gemma 2 norms both ends of each branch, slides (4,096 tokens) in every other layer, from the first, and soft-caps its logits.
"""

from __future__ import annotations

from collections.abc import Callable

from ..ops import add, embed, head, linear
from ..ops.norm_fp32 import rms_norm_fp32
from ..ops.scale import scale, softcap
from ..tape import Tape
from ..tensors import Tensor
from .blocks import gated_mlp
from .config import Config, groups
from .dense import attend, every, project, sizes, windows

MODEL_TYPES = ("gemma", "gemma2")


def forward(t: Tape, c: Config) -> None:
    decoder(t, c)


def decoder(t: Tape, c: Config, mask: Callable[[int | None], Tensor | None] = lambda window: None) -> None:
    """The text model and its head, with a `mask` of its own for each kind of window, if any."""
    second = c.text("model_type") == "gemma2"
    s, bias = sizes(c, kv_heads=4 if second else 16, head_dim=256), c.flag("attention_bias")
    capped = second and c.raw.get("attn_logit_softcapping", 50.0) is not None
    kinds = windows(c, c.size("sliding_window", 4096, label="window"), every(s.layers, 2)) if second else [None] * s.layers

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", s.vocab, s.hidden, merges=False)
        x = t.merged(scale(t, x, "embed_scale"))
        for window, layers in groups(kinds):
            with t.layers("layers", layers, x) as x:
                y = rms_norm_fp32(t, x, "input_layernorm")
                with t.module("self_attn", y, part="attention"):
                    q, k, v = project(t, y, s, bias=bias)
                    y = linear(t, attend(t, q, k, v, s, window=window, capped=capped, mask=mask(window)), "o_proj", s.hidden, bias=bias)
                if second:
                    x = add(t, x, rms_norm_fp32(t, y, "post_attention_layernorm"))
                    y = gated_mlp(t, rms_norm_fp32(t, x, "pre_feedforward_layernorm"), s.ffn)
                    x = add(t, x, rms_norm_fp32(t, y, "post_feedforward_layernorm"))
                else:
                    x = add(t, x, y)
                    x = add(t, x, gated_mlp(t, rms_norm_fp32(t, x, "post_attention_layernorm"), s.ffn))
        x = rms_norm_fp32(t, x, "norm")
    logits = head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings", True) else None)
    if second:
        softcap(t, logits, "final_logit_softcapping")
