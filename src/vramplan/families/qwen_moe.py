"""Qwen1.5/2-MoE and Qwen3-MoE: many small experts, in every `decoder_sparse_step`-th layer that `mlp_only_layers` doesn't name.

Qwen2-MoE has biases on q, k and v, and a shared expert behind a sigmoid gate; Qwen3-MoE has norms on q and k and no shared expert.
"""

from __future__ import annotations

from ..ops import add, embed, head, rms_norm
from ..tape import Tape
from .blocks import gated_mlp, head_dim, moe, self_attention
from .checks import at_most, layer_set, multiple
from .config import Config, groups
from .dense import windows

MODEL_TYPES = ("qwen2_moe", "qwen3_moe")


def forward(t: Tape, c: Config) -> None:
    qwen3 = c.text("model_type") == "qwen3_moe"
    hidden, vocab = c.size("hidden_size", 2048, label="hidden"), c.size("vocab_size", 151936, label="vocab")
    heads = c.size("num_attention_heads", 32 if qwen3 else 16, label="heads")
    kv_heads = c.size("num_key_value_heads", 4 if qwen3 else 16, label="kv_heads")
    ffn = c.size("intermediate_size", 6144 if qwen3 else 5632, label="ffn")
    moe_ffn = c.size("moe_intermediate_size", 768 if qwen3 else 1408, label="moe_ffn")
    n_experts = c.size("num_experts", 128 if qwen3 else 60, label="experts")
    top_k = c.size("num_experts_per_tok", 8 if qwen3 else 4, label="top_k")
    multiple(c, heads, kv_heads)
    at_most(c, top_k, n_experts)
    shared_ffn = None if qwen3 else c.size("shared_expert_intermediate_size", 5632, label="shared_ffn")
    bias = c.flag("attention_bias") if qwen3 else c.flag("qkv_bias", True)

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        for (sparse, window), layers in groups(zip(sparse_layers(c), layer_windows(c, qwen3), strict=True)):
            with t.layers("layers", layers, x) as x:
                y = self_attention(
                    t,
                    rms_norm(t, x, "input_layernorm"),
                    heads=heads,
                    kv_heads=kv_heads,
                    head_dim=head_dim(c, heads, hidden),
                    bias=bias,
                    out_bias=bias and qwen3,
                    qk_norm=qwen3,
                    window=window,
                )
                x = add(t, x, y)
                y = rms_norm(t, x, "post_attention_layernorm")
                if sparse:
                    y = moe(
                        t,
                        y,
                        ffn=moe_ffn,
                        n_experts=n_experts,
                        top_k=top_k,
                        shared_ffn=shared_ffn,
                        shared_gate=True,
                        shared="shared_expert",
                        normalised=c.flag("norm_topk_prob"),
                    )
                else:
                    y = gated_mlp(t, y, ffn)
                x = add(t, x, y)
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def sparse_layers(c: Config) -> list[bool]:
    """Whether each layer has experts."""
    step, dense = c.size("decoder_sparse_step", 1), layer_set(c, "mlp_only_layers")
    return [(i + 1) % step == 0 and i not in dense for i in range(c.layers(default=24))]


def layer_windows(c: Config, qwen3: bool) -> list[int | None]:
    """Each layer's window: Qwen3-MoE slides in all layers, Qwen2-MoE in every other one below `max_window_layers`; by default none."""
    n = c.layers(default=24)
    if not c.flag("use_sliding_window"):
        return [None] * n
    window = c.size("sliding_window", 4096, label="window")
    if qwen3:
        return [window] * n
    last = c.size("max_window_layers", 28, least=0)
    default = ["sliding_attention" if i % 2 == 0 and i < last else "full_attention" for i in range(n)]
    return windows(c, window, default)
