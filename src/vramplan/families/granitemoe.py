"""Granite 3 MoE: Llama's attention and experts whose matrices the checkpoint fuses: one tensor for all of them, gate and up together.

Its multipliers (embedding, residual, attention, logits) are scalars and cost no memory.
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import add, embed, head, rms_norm
from ..ops.moe import experts, route
from ..tape import Tape
from ..tensors import Tensor
from .blocks import head_dim, self_attention
from .checks import at_most, multiple
from .config import Config

MODEL_TYPES = ("granitemoe",)


def forward(t: Tape, c: Config) -> None:
    hidden, vocab = c.size("hidden_size", 4096, label="hidden"), c.size("vocab_size", 32000, label="vocab")
    heads = c.size("num_attention_heads", 32, label="heads")
    kv_heads = c.size("num_key_value_heads", int(heads), label="kv_heads")
    n_experts, top_k = c.size("num_local_experts", 8, label="experts"), c.size("num_experts_per_tok", 2, label="top_k")
    multiple(c, heads, kv_heads)
    at_most(c, top_k, n_experts)
    bias = c.flag("attention_bias")

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        with t.layers("layers", range(c.layers(default=32)), x) as x:
            y = self_attention(
                t,
                rms_norm(t, x, "input_layernorm"),
                heads=heads,
                kv_heads=kv_heads,
                head_dim=head_dim(c, heads, hidden),
                bias=bias,
                out_bias=bias,
            )
            x = add(t, x, y)
            y = fused_moe(
                t,
                rms_norm(t, x, "post_attention_layernorm"),
                ffn=c.size("intermediate_size", 11008, label="ffn"),
                n_experts=n_experts,
                top_k=top_k,
            )
            x = add(t, x, y)
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def fused_moe(t: Tape, x: Tensor, *, ffn: Dim, n_experts: Dim, top_k: Dim) -> Tensor:
    """Granite's experts, stored as `input_linear` [experts, 2·ffn, hidden] and `output_linear` [experts, hidden, ffn]."""
    with t.module("block_sparse_moe", x, part="experts"):
        probabilities = route(t, x, "router.layer", n_experts)
        return experts(
            t,
            x,
            probabilities,
            ffn=ffn,
            n_experts=n_experts,
            top_k=top_k,
            up=("input_linear.weight",),
            down="output_linear.weight",
            fused_up=True,
        )
