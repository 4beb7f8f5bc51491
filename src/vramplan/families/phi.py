"""Phi-1, 1.5 and 2: attention and a plain MLP in parallel on one LayerNorm, biases everywhere, the head's included."""

from __future__ import annotations

from ..ops import add, dropout, embed, head, layer_norm, linear
from ..ops.activations import activate
from ..tape import Tape
from ..tensors import Tensor
from .config import Config
from .dense import Sizes, attend, project, sizes

MODEL_TYPES = ("phi",)


def forward(t: Tape, c: Config) -> None:
    s, qk_norm, act = sizes(c), c.flag("qk_layernorm"), c.text("hidden_act", "gelu_new")
    dropped = c.share("resid_pdrop")

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", s.vocab, s.hidden)
        x = dropout(t, x, c.share("embd_pdrop"))
        with t.layers("layers", range(s.layers), x) as x:
            y = layer_norm(t, x, "input_layernorm")
            with t.module("self_attn", y, part="attention"):
                q, k, v = project(t, y, s, bias=True)
                if qk_norm:
                    q, k = head_norm(t, q, "q_layernorm", s.heads, s), head_norm(t, k, "k_layernorm", s.kv_heads, s)
                a = linear(t, attend(t, q, k, v, s, rotary="joined"), "dense", s.hidden, bias=True)
            with t.module("mlp", y, part="mlp"):
                m = activate(t, linear(t, y, "fc1", s.ffn, bias=True), act)
                m = linear(t, m, "fc2", s.hidden, bias=True)
            x = add(t, add(t, dropout(t, a, dropped), dropout(t, m, dropped)), x)
        x = layer_norm(t, x, "final_layernorm")
    head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings") else None, bias=True)


def head_norm(t: Tape, x: Tensor, name: str, heads: int, s: Sizes) -> Tensor:
    """A LayerNorm over each head: [b, s, heads·head_dim] -> the same."""
    per_head = t.view(x, (*x.shape[:-1], heads, s.head_dim))
    return t.view(layer_norm(t, per_head, name), x.shape)
