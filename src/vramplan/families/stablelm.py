"""StableLM: Llama with LayerNorms, optional biases on q, k and v, optional LayerNorms on each head, optionally a parallel MLP.

With `use_parallel_residual` (12B, Japanese alpha) the MLP reads attention's norm, and has none of its own.
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import add, dropout, embed, head, layer_norm, linear
from ..tape import Tape
from ..tensors import Tensor
from .blocks import gated_mlp
from .config import Config
from .dense import Sizes, attend, project, sizes

MODEL_TYPES = ("stablelm",)


def forward(t: Tape, c: Config) -> None:
    s = sizes(c, kv_heads=32, split=True)
    parallel, qk_norm, bias = c.flag("use_parallel_residual"), c.flag("qk_layernorm"), c.flag("use_qkv_bias")

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", s.vocab, s.hidden)
        with t.layers("layers", range(s.layers), x) as x:
            y = layer_norm(t, x, "input_layernorm")
            with t.module("self_attn", y, part="attention"):
                q, k, v = project(t, y, s, bias=bias)
                if qk_norm:
                    q, k = head_norms(t, q, "q_layernorm", s.heads, s), head_norms(t, k, "k_layernorm", s.kv_heads, s)
                a = linear(t, attend(t, q, k, v, s, rotary="joined"), "o_proj", s.hidden)
            x = add(t, x, a)
            y = gated_mlp(t, y if parallel else layer_norm(t, x, "post_attention_layernorm"), s.ffn)
            x = add(t, x, dropout(t, y, c.share("hidden_dropout")))
        x = layer_norm(t, x, "norm")
    head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def head_norms(t: Tape, x: Tensor, name: str, heads: Dim, s: Sizes) -> Tensor:
    """A LayerNorm without bias for each head: [b, s, heads·head_dim] -> the same. The checkpoint holds `heads` weights, `norms.{e}`."""
    weight = t.weight(f"{name}.norms.{{e}}.weight", (s.head_dim,), "norm", copies=heads, active=heads)
    stats = t.tensor(f"{name}.stats", (*x.shape[:-1], heads, Dim(2)), itemsize=4)
    return t.op(name, (x,), x.shape, weights=(weight,), saves=(x, stats), extra=(stats,), always=True)
