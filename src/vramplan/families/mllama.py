"""Llama 3.2 Vision: Llama with cross-attention layers between, whose keys and values are those of the image.

Unusual: those layers cache the image's tokens (4 tiles of (560/14)² + 1 each), per sequence and not per text token, and only where there is
an image; without one, transformers skips them in training; in serving this walk lets the text through them. In the text an image is one
token. Their norm-and-gate scalars start at zero. Eight more embeddings than logits. Defaults: MllamaTextConfig (transformers 5.23
`models/mllama`).
"""

from __future__ import annotations

from ..dim import Dim
from ..ops import add, attention, embed, head, linear, rms_norm
from ..ops.scale import scale
from ..tape import Tape
from ..tensors import Tensor
from .blocks import gated_mlp, self_attention
from .checks import layer_set, multiple
from .config import Config, groups
from .vision_mllama import Image, gate, vision

MODEL_TYPES = ("mllama",)

Heads = tuple[Dim, Dim, Dim]
"""Heads, those of keys and values, and their width."""


def forward(t: Tape, c: Config) -> None:
    text = c.sub("text_config")
    hidden, vocab = text.size("hidden_size", 4096, label="hidden"), text.size("vocab_size", 128256, label="vocab")
    heads, kv_heads = text.size("num_attention_heads", 32, label="heads"), text.size("num_key_value_heads", 8, label="kv_heads")
    sizes = heads, kv_heads, Dim(int(multiple(text, hidden, heads)), "head_dim")
    multiple(text, heads, kv_heads)
    ffn = text.size("intermediate_size", 14336, label="ffn")
    crosses = layer_set(text, "cross_attention_layers", (3, 8, 13, 18, 23, 28, 33, 38))
    with t.aside():
        image = vision(t, c.sub("vision_config"), hidden)

    with t.module("language_model"):
        with t.module("model"):
            x, tokens = embed(t, "embed_tokens", vocab + 8, hidden)
            for cross, layers in groups(i in crosses for i in range(text.layers(default=40))):
                skipped = cross and t.method is not None and not t.images
                with t.skipping(skipped), t.layers("layers", layers, x) as y:
                    y = cross_layer(t, y, image, sizes, ffn) if cross else self_layer(t, y, sizes, ffn)
                x = x if skipped else y
            x = rms_norm(t, x, "norm")
        head(t, x, "lm_head", vocab, tied=tokens if text.flag("tie_word_embeddings") else None)


def self_layer(t: Tape, x: Tensor, sizes: Heads, ffn: Dim) -> Tensor:
    """Llama's."""
    heads, kv_heads, d = sizes
    x = add(t, x, self_attention(t, rms_norm(t, x, "input_layernorm"), heads=heads, kv_heads=kv_heads, head_dim=d))
    return add(t, x, gated_mlp(t, rms_norm(t, x, "post_attention_layernorm"), ffn))


def cross_layer(t: Tape, x: Tensor, image: Image, sizes: Heads, ffn: Dim) -> Tensor:
    """Text asks the image; what tokens that see none make in the MLP is zeroed."""
    y = cross_attention(t, rms_norm(t, x, "input_layernorm"), image, sizes)
    x = add(t, x, gate(t, y, "cross_attn_attn_gate"))
    y = gated_mlp(t, rms_norm(t, x, "post_attention_layernorm"), ffn)
    if t.images:
        y = scale(t, y, "rows")
    return add(t, x, gate(t, y, "cross_attn_mlp_gate"))


def cross_attention(t: Tape, x: Tensor, image: Image, sizes: Heads) -> Tensor:
    """Text asks, the image answers: [b, s, hidden] -> [b, s, hidden]; keys and values [image tokens, kv_heads, head_dim] per sequence."""
    heads, kv_heads, d = sizes
    width = kv_heads * d
    with t.module("cross_attn", x, part="attention"):
        q = rms_norm(t, linear(t, x, "q_proj", heads * d), "q_norm", width=d)
        with t.skipping(not t.images):
            k = rms_norm(t, linear(t, image.states, "k_proj", width), "k_norm", width=d)
            v = linear(t, image.states, "v_proj", width)
        with t.tower("vision"):
            t.cache("image keys", "k", (image.tokens, kv_heads, d), per="sequence")
            t.cache("image values", "v", (image.tokens, kv_heads, d), per="sequence")
        k, v = (t.view(side, (x.shape[0], image.tokens * max(t.images, 1), width)) for side in (k, v))
        y = attention(t, q, k, v, heads=heads, kv_heads=kv_heads, mask=image.mask, past=False)
        return linear(t, y, "o_proj", x.shape[-1])
