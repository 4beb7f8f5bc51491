"""gpt-oss: every other layer slides over 128 tokens, a learned sink per head joins each softmax, and biases stand everywhere.

The experts are stored as [in, out], gate and up interleaved in one matrix (in MXFP4 in OpenAI's own checkpoints, as `_blocks` and
`_scales`). transformers has no sdpa path for it: sinks need eager attention or a flash kernel that knows them.
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import add, embed, experts, head, linear, rms_norm, route
from ..tape import Tape
from ..tensors import Tensor
from .blocks import grouped_attention
from .checks import at_most, multiple
from .config import Config, groups
from .dense import every, windows

MODEL_TYPES = ("gpt_oss",)


def forward(t: Tape, c: Config) -> None:
    hidden, vocab = c.size("hidden_size", 2880, label="hidden"), c.size("vocab_size", 201088, label="vocab")
    heads = c.size("num_attention_heads", 64, label="heads")
    kv_heads = c.size("num_key_value_heads", 8, label="kv_heads")
    d, ffn = c.size("head_dim", 64), c.size("intermediate_size", 2880, label="ffn")
    n_experts, top_k = c.size("num_local_experts", 128, label="experts"), c.size("num_experts_per_tok", 4, label="top_k")
    multiple(c, heads, kv_heads)
    at_most(c, top_k, n_experts)
    bias = c.flag("attention_bias", True)

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        for window, layers in groups(layer_windows(c)):
            with t.layers("layers", layers, x) as x:
                y = sink_attention(t, rms_norm(t, x, "input_layernorm"), heads, kv_heads, d, bias, window)
                x = add(t, x, y)
                y = rms_norm(t, x, "post_attention_layernorm")
                with t.module("mlp", y, part="experts"):
                    y = experts(
                        t,
                        y,
                        route(t, y, "router", n_experts, bias=True),
                        ffn=ffn,
                        n_experts=n_experts,
                        top_k=top_k,
                        up=("experts.gate_up_proj",),
                        down="experts.down_proj",
                        bias=True,
                        transposed=True,
                        fused_up=True,
                    )
                x = add(t, x, y)
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def sink_attention(t: Tape, x: Tensor, heads: Dim, kv_heads: Dim, d: Dim, bias: bool, window: int | None) -> Tensor:
    """Grouped-query attention with a learned logit per head, `sinks`, in each softmax's sum: [b, s, hidden] -> [b, s, hidden]."""
    with t.module("self_attn", x, part="attention"):
        t.weight("sinks", (heads,), "norm")
        q = linear(t, x, "q_proj", heads * d, bias=bias)
        k = linear(t, x, "k_proj", kv_heads * d, bias=bias)
        v = linear(t, x, "v_proj", kv_heads * d, bias=bias)
        y = grouped_attention(t, q, k, v, heads=heads, kv_heads=kv_heads, head_dim=d, window=window, sdpa=False, sinks=True)
        return linear(t, y, "o_proj", x.shape[-1], bias=bias)


def layer_windows(c: Config) -> list[int | None]:
    """Each layer's window: `layer_types`, by default sliding and full in turns, the first sliding."""
    n = c.layers(default=36)
    window = c.maybe("sliding_window", label="window") if "sliding_window" in c.raw else Dim(128, "window")
    return windows(c, window, every(n, 2))
