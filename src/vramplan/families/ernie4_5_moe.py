"""ERNIE 4.5 MoE, the text model: experts from `moe_layer_start_index` to `moe_layer_end_index`, every `moe_layer_interval`-th layer.

The router works in fp32, with a correction bias that transformers counts as a parameter; two shared experts; the head is tied.
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import add, embed, experts, head, rms_norm, route
from ..tape import Tape
from ..tensors import Tensor
from .blocks import gated_mlp, head_dim, self_attention
from .checks import multiple
from .config import Config, groups

MODEL_TYPES = ("ernie4_5_moe",)


def forward(t: Tape, c: Config) -> None:
    hidden, vocab = c.size("hidden_size", 2560, label="hidden"), c.size("vocab_size", 103424, label="vocab")
    heads, kv_heads = c.size("num_attention_heads", 20, label="heads"), c.size("num_key_value_heads", 4, label="kv_heads")
    multiple(c, heads, kv_heads)
    ffn, bias = c.size("intermediate_size", 12288, label="ffn"), c.flag("use_bias")

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        for sparse, layers in groups(sparse_layers(c)):
            with t.layers("layers", layers, x) as x:
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
                y = rms_norm(t, x, "post_attention_layernorm")
                y = sparse_mlp(t, y, c, bias) if sparse else gated_mlp(t, y, ffn, bias=bias)
                x = add(t, x, y)
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings", True) else None, bias=bias)


def sparse_layers(c: Config) -> list[bool]:
    """Whether each layer has experts; an end index of -1 is the last layer."""
    n, interval = c.layers(default=28), c.size("moe_layer_interval", 1)
    start, end = c.size("moe_layer_start_index", 1, least=0), c.size("moe_layer_end_index", -1, least=-1)
    last = n - 1 if end == -1 else int(end)
    return [(i + 1) % interval == 0 and start <= i <= last for i in range(n)]


def sparse_mlp(t: Tape, x: Tensor, c: Config, bias: bool) -> Tensor:
    """Routed and shared experts side by side: [b, s, hidden] -> [b, s, hidden]."""
    ffn, n_experts = c.size("moe_intermediate_size", 1536, label="moe_ffn"), c.size("moe_num_experts", 64, label="experts")
    shared = c.size("moe_num_shared_experts", 2, label="shared_experts", least=0)
    with t.module("mlp", x, part="experts"):
        s = gated_mlp(t, x, ffn * shared, bias=bias, module="shared_experts") if shared else None
        probabilities = route(t, x, "gate", n_experts, dtype="fp32")
        t.weight("moe_statics.e_score_correction_bias", (Dim(1), n_experts), "conv", dtype="fp32")
        y = experts(
            t,
            x,
            probabilities,
            ffn=ffn,
            n_experts=n_experts,
            top_k=c.size("moe_k", 6, label="top_k"),
            up=("experts.{e}.gate_proj.weight", "experts.{e}.up_proj.weight"),
            down="experts.{e}.down_proj.weight",
        )
        return add(t, y, s, "shared") if s else y
