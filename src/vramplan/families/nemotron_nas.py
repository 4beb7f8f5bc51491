"""Nemotron-NAS (DeciLM): Llama whose layers a search has thinned: some without attention, MLPs of different widths, or one linear map.

`block_configs` describes each layer. What a layer lacks, it has no norm for either. Not in transformers: the widths follow the model's own
code (2/3 of `ffn_mult` times the hidden size, up to a multiple of 256), and the sum meets the published 49,867,145,216 parameters of
Llama-3_3-Nemotron-Super-49B-v1. Sparsified layers are refused.
"""

from __future__ import annotations

from ..dim import Dim
from ..errors import BadInput
from ..ops import add, embed, head, linear, rms_norm
from ..tape import Tape
from ..tensors import Tensor
from .blocks import gated_mlp, head_dim, self_attention
from .checks import multiple
from .config import Config, groups

MODEL_TYPES = ("nemotron-nas",)

Part = str | tuple[int, ...]


def forward(t: Tape, c: Config) -> None:
    hidden, vocab = c.size("hidden_size", label="hidden"), c.size("vocab_size", label="vocab")
    heads, bias = c.size("num_attention_heads", label="heads"), c.flag("attention_bias")

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        for (attention, mlp), layers in groups(layer_kinds(c, heads, hidden)):
            with t.layers("layers", layers, x) as x:
                if attention != "none":
                    x = add(t, x, attend(t, rms_norm(t, x, "input_layernorm"), attention, heads, head_dim(c, heads, hidden), bias))
                if mlp != "none":
                    y = rms_norm(t, x, "post_attention_layernorm")
                    if isinstance(mlp, tuple):
                        y = gated_mlp(t, y, Dim(mlp[0], "ffn"), bias=c.flag("mlp_bias"))
                    else:
                        y = linear(t, y, "mlp.linear_mlp", hidden)
                    x = add(t, x, y)
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings") else None)


def attend(t: Tape, x: Tensor, attention: Part, heads: Dim, d: Dim, bias: bool) -> Tensor:
    """Grouped-query attention (kv heads, window or 0), or the linear map that replaces it."""
    if not isinstance(attention, tuple):
        return linear(t, x, "self_attn.linear_attn", x.shape[-1])
    kv_heads, window = Dim(attention[0], "kv_heads"), Dim(attention[1], "window") if attention[1] else None
    return self_attention(t, x, heads=heads, kv_heads=kv_heads, head_dim=d, bias=bias, out_bias=bias, window=window)


def layer_kinds(c: Config, heads: Dim, hidden: Dim) -> list[tuple[Part, Part]]:
    """(attention, MLP) of each layer: "none", "linear", or sizes: (kv heads, window) and (width,)."""
    n, blocks = c.layers(), c.items("block_configs") or []
    if len(blocks) != n or not all(isinstance(block, dict) for block in blocks):
        raise BadInput(f"{c.path}: 'block_configs' must be a list of {n} objects, one for each layer")
    kinds: list[tuple[Part, Part]] = []
    for i, block in enumerate(blocks):
        b = Config(block if isinstance(block, dict) else {}, f"{c.path}.block_configs[{i}]")
        attention, ffn = b.sub("attention"), b.sub("ffn")
        if attention.has("sparsify") or ffn.has("sparsify"):
            raise BadInput(f"{b.path}: sparsified layers are not known")
        a = without(attention) or (int(multiple(c, heads, attention.size("n_heads_in_group"))), int(attention.maybe("window_length") or 0))
        kinds.append((a, without(ffn) or (width(ffn, hidden),)))
    return kinds


def without(part: Config) -> str:
    """Whether a layer lacks the part ("none") or has a "linear" map in its place; empty where it has it."""
    return "none" if part.flag("no_op") else "linear" if part.flag("replace_with_linear") else ""


def width(ffn: Config, hidden: Dim) -> int:
    """2/3 · ffn_mult · hidden, rounded down, then up to a multiple of 256."""
    mult = ffn.raw.get("ffn_mult")
    if isinstance(mult, bool) or not isinstance(mult, int | float) or not 0 < mult <= 1024:
        raise BadInput(f"{ffn.path}: 'ffn_mult' is {str(mult)[:60]}; it must be a number above 0 and at most 1024")
    return max(256, -(-int(2 * mult * int(hidden) / 3) // 256) * 256)
