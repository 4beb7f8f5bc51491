"""Nemotron (dense), Arcee and Apertus: Llama with an MLP without a gate, whose activation is relu² or, Apertus's, xIELU.

Nemotron has LayerNorms; Apertus norms on q and k, other names for its norms, and in xIELU (Huang & Schlag 2024, arXiv:2411.13010) two
learned scalars and two constants per layer, which its checkpoints hold.
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import add, embed, head, layer_norm, linear, rms_norm
from ..ops.activations import activate, xielu
from ..tape import Tape
from ..tensors import Tensor
from .config import Config
from .dense import attend, project, sizes

MODEL_TYPES = ("nemotron", "arcee", "apertus")


def forward(t: Tape, c: Config) -> None:
    kind = c.text("model_type")
    apertus, norm = kind == "apertus", layer_norm if kind == "nemotron" else rms_norm
    s, bias = sizes(c), c.flag("attention_bias")
    act = c.text("hidden_act", "xielu" if apertus else "relu2")
    names = ("attention_layernorm", "feedforward_layernorm") if apertus else ("input_layernorm", "post_attention_layernorm")

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", s.vocab, s.hidden)
        with t.layers("layers", range(s.layers), x) as x:
            y = norm(t, x, names[0])
            with t.module("self_attn", y, part="attention"):
                q, k, v = project(t, y, s, bias=bias)
                if apertus:
                    q, k = rms_norm(t, q, "q_norm", width=s.head_dim), rms_norm(t, k, "k_norm", width=s.head_dim)
                y = linear(t, attend(t, q, k, v, s, rotary="joined" if kind == "nemotron" else True), "o_proj", s.hidden, bias=bias)
            x = add(t, x, y)
            x = add(t, x, mlp(t, norm(t, x, names[1]), s.ffn, bias=c.flag("mlp_bias") and not apertus, act=act))
        x = norm(t, x, "norm")
    head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def mlp(t: Tape, x: Tensor, ffn: Dim, *, bias: bool, act: str) -> Tensor:
    """Up, activation, down: [b, s, hidden] -> [b, s, hidden]."""
    with t.module("mlp", x, part="mlp"):
        y = linear(t, x, "up_proj", ffn, bias=bias)
        return linear(t, xielu(t, y) if act == "xielu" else activate(t, y, act), "down_proj", x.shape[-1], bias=bias)
