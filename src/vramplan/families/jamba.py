"""Jamba: seven Mamba-1 layers to one of attention; every second feed-forward is a mixture of experts.

Unusual: no positions at all, norms on Mamba's Δ, B and C; one expert (Jamba 3B) is a plain MLP. Which layer is what follows from periods
and offsets. Source: Lieber et al. 2024 (arXiv:2403.19887); transformers 5.23 `models/jamba`.
"""

from __future__ import annotations

from ..errors import BadInput
from ..ops import add, embed, head, rms_norm
from ..tape import Tape
from .blocks import gated_mlp, moe, self_attention
from .checks import at_most, multiple
from .config import Config, groups
from .mamba import mamba1, time_step_rank

MODEL_TYPES = ("jamba",)


def forward(t: Tape, c: Config) -> None:
    hidden, vocab = c.size("hidden_size", 4096, label="hidden"), c.size("vocab_size", 65536, label="vocab")
    heads = c.size("num_attention_heads", 32, label="heads")
    kv_heads = c.size("num_key_value_heads", 8, label="kv_heads")
    d = multiple(c, hidden, heads)
    multiple(c, heads, kv_heads)
    ffn, n_experts = c.size("intermediate_size", 14336, label="ffn"), c.size("num_experts", 16, label="experts")
    top_k = at_most(c, c.size("num_experts_per_tok", 2, label="top_k"), n_experts)
    routed, attends = periodic(c, "expert_layer", 2, 1), periodic(c, "attn_layer", 8, 4)

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        for (attention, sparse), layers in groups(zip(attends, routed, strict=True)):
            with t.layers("layers", layers, x) as x:
                y = rms_norm(t, x, "input_layernorm")
                if attention:
                    y = self_attention(t, y, heads=heads, kv_heads=kv_heads, head_dim=d, rotary=False)
                else:
                    y = mamba1(
                        t,
                        y,
                        inner=c.size("mamba_expand", 2) * hidden,
                        state=c.size("mamba_d_state", 16, label="d_state"),
                        rank=time_step_rank(c, "mamba_dt_rank", hidden),
                        kernel=c.size("mamba_d_conv", 4),
                        conv_bias=c.flag("mamba_conv_bias", True),
                        bias=c.flag("mamba_proj_bias"),
                        module="mamba",
                        norms=True,
                    )
                x = add(t, x, y)
                y = rms_norm(t, x, "pre_ff_layernorm")
                if sparse and n_experts > 1:
                    y = moe(t, y, ffn=ffn, n_experts=n_experts, top_k=top_k, router="router", module="feed_forward")
                else:
                    y = gated_mlp(t, y, ffn, module="feed_forward")
                x = add(t, x, y)
        x = rms_norm(t, x, "final_layernorm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def periodic(c: Config, name: str, period: int, offset: int) -> list[bool]:
    """Whether each layer is the `{name}_offset`-th of its `{name}_period`. Raises BadInput where the offset is not below the period."""
    every, at = c.size(f"{name}_period", period), c.size(f"{name}_offset", offset, least=0)
    if at >= every:
        raise BadInput(f"{c.path}: '{name}_offset' is {int(at)}; it must be below '{name}_period', {int(every)}")
    return [i % int(every) == int(at) for i in range(c.layers(default=32))]
