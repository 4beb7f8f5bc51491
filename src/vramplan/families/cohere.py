"""Command R and R+ (`cohere`), Command R7B and Aya (`cohere2`): attention and MLP in parallel on one LayerNorm, tied, scaled logits.

Command R+ norms each head of q and k with a weight of its own. Cohere 2 slides (4,096 tokens) in three layers of four; the fourth attends
to everything, without rotary positions.
"""

from __future__ import annotations

from ..ops import add, embed, head, linear
from ..ops.layer_norm_fp32 import layer_norm_fp32
from ..ops.scale import scale
from ..tape import Tape
from ..tensors import Tensor
from .blocks import gated_mlp
from .config import Config, groups
from .dense import Sizes, attend, every, project, sizes, windows

MODEL_TYPES = ("cohere", "cohere2")


def forward(t: Tape, c: Config) -> None:
    second = c.text("model_type") == "cohere2"
    s, bias = sizes(c, split=second), c.flag("attention_bias")
    qk_norm = c.flag("use_qk_norm") and not second
    kinds: list[int | None] = [None] * s.layers
    if second:
        default = every(s.layers, int(c.size("sliding_window_pattern", 4)))
        kinds = windows(c, c.size("sliding_window", 4096, label="window"), default)

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", s.vocab, s.hidden)
        for window, layers in groups(kinds):
            with t.layers("layers", layers, x) as x:
                y = layer_norm_fp32(t, x, "input_layernorm")
                with t.module("self_attn", y, part="attention"):
                    q, k, v = project(t, y, s, bias=bias)
                    if qk_norm:
                        q, k = head_norm(t, q, "q_norm", s.heads, s), head_norm(t, k, "k_norm", s.kv_heads, s)
                    a = attend(t, q, k, v, s, window=window, rotary=not second or window is not None)
                    a = linear(t, a, "o_proj", s.hidden, bias=bias)
                x = add(t, add(t, x, a), gated_mlp(t, y, s.ffn))
        x = layer_norm_fp32(t, x, "norm")
    logits = head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings", True) else None)
    scale(t, logits, "logit_scale")


def head_norm(t: Tape, x: Tensor, name: str, heads: int, s: Sizes) -> Tensor:
    """A LayerNorm over each head, with a weight [heads, head_dim]: [b, s, heads·head_dim] -> the same."""
    per_head = t.view(x, (*x.shape[:-1], heads, s.head_dim))
    return t.view(layer_norm_fp32(t, per_head, name, shape=(heads, s.head_dim)), x.shape)
