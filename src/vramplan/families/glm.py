"""GLM-4 (`glm`): Llama with biases on q, k and v, and gate and up in one matrix. GLM-4-0414 (`glm4`) norms the end of each branch too."""

from __future__ import annotations

from ..ops import add, embed, head, linear, rms_norm
from ..tape import Tape
from .config import Config
from .dense import attend, fused_mlp, project, sizes

MODEL_TYPES = ("glm", "glm4")


def forward(t: Tape, c: Config) -> None:
    ends = c.text("model_type") == "glm4"
    s, bias = sizes(c, kv_heads=2, head_dim=128), c.flag("attention_bias", True)

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", s.vocab, s.hidden)
        with t.layers("layers", range(s.layers), x) as x:
            y = rms_norm(t, x, "input_layernorm")
            with t.module("self_attn", y, part="attention"):
                q, k, v = project(t, y, s, bias=bias)
                y = linear(t, attend(t, q, k, v, s, rotary="joined"), "o_proj", s.hidden)
            x = add(t, x, rms_norm(t, y, "post_self_attn_layernorm") if ends else y)
            y = fused_mlp(t, rms_norm(t, x, "post_attention_layernorm"), s.ffn)
            x = add(t, x, rms_norm(t, y, "post_mlp_layernorm") if ends else y)
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings") else None)
