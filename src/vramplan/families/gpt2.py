"""GPT-2, and GPT-BigCode (SantaCoder, StarCoder), which gives all its heads one key and value.

Learned positions, LayerNorms, q, k and v in one projection, a plain MLP, a tied head. GPT-2's linears are Conv1D, stored as [in, out].
Names are those of GPT2LMHeadModel; OpenAI's own files leave `transformer.` away.
"""

from __future__ import annotations

from dataclasses import replace

from ..dim import Dim
from ..ops import add, dropout, embed, head, layer_norm, linear
from ..ops.activations import activate
from ..ops.conv1d import conv1d
from ..tape import Tape
from ..tensors import Tensor
from .config import Config
from .dense import attend, qkv_width, renamed, sizes, split

MODEL_TYPES = ("gpt2", "gpt_bigcode")


def forward(t: Tape, c: Config) -> None:
    big = c.text("model_type") == "gpt_bigcode"
    common = renamed(c, n_embd="hidden_size", n_layer="num_hidden_layers", n_head="num_attention_heads")
    s = sizes(common, grouped=False, split=True, ffn=("n_inner", 4))
    if big and c.flag("multi_query", True):
        s = replace(s, kv_heads=Dim(1, "kv_heads"))
    positions = renamed(c, n_positions="max_position_embeddings").size("max_position_embeddings", 1024, label="positions")

    dropped = c.share("resid_pdrop", 0.1)
    t.attention_dropout = c.share("attn_pdrop", 0.1)
    act = c.text("activation_function", "gelu_pytorch_tanh" if big else "gelu_new")

    def project(x: Tensor, name: str, out: Dim) -> Tensor:
        return linear(t, x, name, out, bias=True) if big else conv1d(t, x, name, out)

    with t.module("transformer"):
        x, tokens = embed(t, "wte", s.vocab, s.hidden)
        places, _ = embed(t, "wpe", positions, s.hidden)
        if big and t.method:  # a causal mask of all positions, which no checkpoint has and only transformers makes
            t.weight("bias", (positions, positions), "buffer", dtype="bool")
        x = dropout(t, add(t, x, places, "positions"), c.share("embd_pdrop", 0.1))
        with t.layers("h", range(s.layers), x) as x:
            y = layer_norm(t, x, "ln_1")
            with t.module("attn", y, part="attention"):
                q, k, v = split(t, project(y, "c_attn", qkv_width(s)), s)
                y = dropout(t, project(attend(t, q, k, v, s, rotary=False, upcast=big), "c_proj", s.hidden), dropped)
            x = add(t, x, y)
            y = layer_norm(t, x, "ln_2")
            with t.module("mlp", y, part="mlp"):
                y = dropout(t, project(activate(t, project(y, "c_fc", s.ffn), act), "c_proj", s.hidden), dropped)
            x = add(t, x, y)
        x = layer_norm(t, x, "ln_f")
    head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings", True) else None)
