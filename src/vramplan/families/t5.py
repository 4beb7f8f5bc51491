"""T5: an encoder, and a decoder that attends to itself and to the encoder's output; relative positions by a table in each first block.

The heads' width `d_kv` is a number of its own, norms have no bias, no linear has one. The decoder caches its own keys and values, and those
of the encoder's output. The pass takes as many tokens in the encoder as in the decoder. `shared` embeds both and is the head too;
v1.1 and Flan-T5 have a head of their own and a gated MLP. `T5EncoderModel` has no decoder.
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import add, attention, embed, gated, head, linear, rms_norm
from ..ops.activations import activate
from ..tape import Tape
from ..tensors import Tensor
from .blocks import cache_kv
from .config import Config, groups
from .dense import Sizes, renamed, sizes

MODEL_TYPES = ("t5",)


def forward(t: Tape, c: Config) -> None:
    common = renamed(c, d_model="hidden_size", d_ff="intermediate_size", num_layers="num_hidden_layers", num_heads="num_attention_heads")
    s = sizes(renamed(common, d_kv="head_dim"), grouped=False, head_dim=64)
    deep = c.layers("num_decoder_layers", s.layers)
    t.untold = "the bias of relative positions, a tensor [heads, s, s] that attention adds and that trains,"

    x, tokens = embed(t, "shared", s.vocab, s.hidden)
    encoded = stack(t, c, x, s, "encoder", s.layers)
    if "T5EncoderModel" in (c.items("architectures") or ()):
        return
    ids = t.tensor("decoder.ids", (t.sequences, t.tokens), itemsize=8)
    x = t.op("decoder.embed", (ids,), encoded.shape, weights=(tokens,), saves=(ids,))
    x = stack(t, c, x, s, "decoder", deep, encoded)
    head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings", True) else None)


def stack(t: Tape, c: Config, x: Tensor, s: Sizes, name: str, n: int, encoded: Tensor | None = None) -> Tensor:
    """Blocks of self-attention, for the decoder cross-attention to `encoded`, and an MLP: [b, s, hidden] -> [b, s, hidden]."""
    buckets = c.size("relative_attention_num_buckets", 32, label="buckets")
    act = c.text("feed_forward_proj", "relu")
    with t.module(name):
        for first, layers in groups(i == 0 for i in range(n)):
            with t.layers("block", layers, x) as x:
                y = rms_norm(t, x, "layer.0.layer_norm")
                x = add(t, x, attend(t, y, y, s, "layer.0.SelfAttention", cached=encoded is not None, buckets=buckets if first else None))
                if encoded is not None:
                    y = rms_norm(t, x, "layer.1.layer_norm")
                    x = add(t, x, attend(t, y, encoded, s, "layer.1.EncDecAttention", cached=True))
                y = rms_norm(t, x, f"layer.{1 if encoded is None else 2}.layer_norm")
                x = add(t, x, mlp(t, y, s, f"layer.{1 if encoded is None else 2}.DenseReluDense", act))
        return rms_norm(t, x, "final_layer_norm")


def attend(t: Tape, x: Tensor, source: Tensor, s: Sizes, module: str, *, cached: bool, buckets: Dim | None = None) -> Tensor:
    """Attention of x to `source`, both [b, s, hidden]; `buckets` relative positions where this block holds the table."""
    width = s.heads * s.head_dim
    with t.module(module, x, part="attention"):
        q, k, v = linear(t, x, "q", width), linear(t, source, "k", width), linear(t, source, "v", width)
        if buckets:
            t.weight("relative_attention_bias.weight", (buckets, s.heads), "embed")
        if cached:
            cache_kv(t, s.kv_heads, s.head_dim)
        y = attention(t, q, k, v, heads=s.heads, kv_heads=s.heads, past=cached)
        return linear(t, y, "o", s.hidden)


def mlp(t: Tape, x: Tensor, s: Sizes, module: str, act: str) -> Tensor:
    """Plain, or gated where `act` says so ("gated-gelu"): [b, s, hidden] -> [b, s, hidden]."""
    with t.module(module, x, part="mlp"):
        y = gated(t, x, "wi_0", "wi_1", s.ffn) if act.startswith("gated") else activate(t, linear(t, x, "wi", s.ffn), act)
        return linear(t, y, "wo", s.hidden)
