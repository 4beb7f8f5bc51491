"""Falcon-H1: attention and Mamba-2 side by side in every layer, on the same normed input, their outputs added.

Unusual: so every layer has both a cache that grows and a state of fixed size. The gate of the Mamba half multiplies without a norm unless
`mamba_rms_norm`. Its many multipliers are scalars. Source: Zuo et al. 2025 (arXiv:2507.22448); transformers 5.23 `models/falcon_h1`.
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import add, embed, head, rms_norm
from ..ops.scale import scale
from ..tape import Tape
from .blocks import gated_mlp, head_dim, self_attention
from .checks import multiple
from .config import Config
from .mamba import grouped_mamba2

MODEL_TYPES = ("falcon_h1",)


def forward(t: Tape, c: Config) -> None:
    hidden, vocab = c.size("hidden_size", 4096, label="hidden"), c.size("vocab_size", 128000, label="vocab")
    heads = c.size("num_attention_heads", 32, label="heads")
    kv_heads = c.size("num_key_value_heads", 8, label="kv_heads")
    multiple(c, heads, kv_heads)
    bias, d = c.flag("attention_bias"), head_dim(c, heads, hidden)
    inner = c.size("mamba_d_ssm", 1024) if c.raw.get("mamba_d_ssm", 1024) is not None else c.size("mamba_expand", 2) * hidden

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        with t.layers("layers", range(c.layers(default=32)), x) as x:
            y = t.hold(rms_norm(t, x, "input_layernorm"))
            recurrent = grouped_mamba2(
                t,
                scale(t, y, "ssm_in_multiplier"),
                c,
                inner=Dim(int(inner), "mamba_inner"),
                heads=128,
                state=256,
                gated_norm=c.flag("mamba_rms_norm"),
                gate_first=not c.flag("mamba_norm_before_gate", True),
                out_bias=c.flag("projectors_bias"),
                scaled=True,
            )
            recurrent = scale(t, recurrent, "ssm_out_multiplier")
            y = scale(t, y, "attention_in_multiplier")
            y = self_attention(t, y, heads=heads, kv_heads=kv_heads, head_dim=d, bias=bias, out_bias=bias)
            x = add(t, x, add(t, recurrent, scale(t, y, "attention_out_multiplier"), "mixed"))
            ffn = c.size("intermediate_size", 14336, label="ffn")
            y = gated_mlp(t, rms_norm(t, x, "pre_ff_layernorm"), ffn, bias=c.flag("mlp_bias"), module="feed_forward")
            x = add(t, x, y)
        x = rms_norm(t, x, "final_layernorm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)
