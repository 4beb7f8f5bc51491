"""OPT: learned positions (two more than the context), LayerNorms before the branches, in 350M after them, relu MLP, biases, tied.

350M embeds in fewer dimensions than it computes in: `project_in` and `project_out`, and no final norm.
"""

from __future__ import annotations

from ..ops import add, dropout, embed, head, layer_norm, linear
from ..ops.activations import activate
from ..tape import Tape
from .config import Config
from .dense import attend, project, sizes

MODEL_TYPES = ("opt",)


def forward(t: Tape, c: Config) -> None:
    s = sizes(c, grouped=False, split=True, ffn=("ffn_dim", 4))
    width = c.size("word_embed_proj_dim", int(s.hidden))
    act, dropped = c.text("activation_function", "relu"), c.share("dropout", 0.1)
    positions = c.size("max_position_embeddings", 2048, label="positions")
    before, bias, affine = c.flag("do_layer_norm_before", True), c.flag("enable_bias", True), c.flag("layer_norm_elementwise_affine", True)

    with t.module("model.decoder"):
        x, tokens = embed(t, "embed_tokens", s.vocab, width)
        places, _ = embed(t, "embed_positions", positions + 2, s.hidden)
        if width != s.hidden:
            x = linear(t, x, "project_in", s.hidden)
        x = add(t, x, places, "positions")
        with t.layers("layers", range(s.layers), x) as x:
            y = layer_norm(t, x, "self_attn_layer_norm", weight=affine, bias=affine) if before else x
            with t.module("self_attn", y, part="attention"):
                q, k, v = project(t, y, s, bias=bias)
                y = linear(t, attend(t, q, k, v, s, rotary=False), "out_proj", s.hidden, bias=bias)
            x = add(t, x, dropout(t, y, dropped))
            x = x if before else layer_norm(t, x, "self_attn_layer_norm", weight=affine, bias=affine)
            y = layer_norm(t, x, "final_layer_norm", weight=affine, bias=affine) if before else x
            with t.module("", part="mlp"):
                y = linear(t, activate(t, linear(t, y, "fc1", s.ffn, bias=bias), act), "fc2", s.hidden, bias=bias)
            x = add(t, x, dropout(t, y, dropped))
            x = x if before else layer_norm(t, x, "final_layer_norm", weight=affine, bias=affine)
        if before and not c.flag("_remove_final_layer_norm"):
            x = layer_norm(t, x, "final_layer_norm", weight=affine, bias=affine)
        if width != s.hidden:
            x = linear(t, x, "project_out", width)
    head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings", True) else None)
