"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: Qwen2's, Qwen3's or Qwen3-MoE's text model behind a vision tower.

Unusual: positions are those of text, height and width (M-RoPE), which changes no shape. Older configs are flat: the text model's keys stand
at the top. Qwen3-VL-MoE ships all experts of a layer in one tensor, stored [in, out].
"""

from __future__ import annotations

from ..ops import add, embed, experts, head, rms_norm, route
from ..tape import Tape
from ..tensors import Tensor
from .blocks import gated_mlp, head_dim, self_attention
from .checks import at_most, layer_set, multiple
from .config import Config, groups
from .qwen_vision import deepened, merging, qwen2_5_vl_tower, qwen2_vl_tower, qwen3_vl_tower

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")

TOWERS = {"qwen2_vl": qwen2_vl_tower, "qwen2_5_vl": qwen2_5_vl_tower, "qwen3_vl": qwen3_vl_tower, "qwen3_vl_moe": qwen3_vl_tower}


def forward(t: Tape, c: Config) -> None:
    kind = c.text("model_type")
    seen = merging(t, lambda: TOWERS[kind](t, c.sub("vision_config")))
    text = c.sub("text_config") if c.has("text_config") else c
    third = kind.startswith("qwen3")
    tied = c.flag("tie_word_embeddings") or (not third and text.flag("tie_word_embeddings"))
    hidden, vocab = text.size("hidden_size", label="hidden"), text.size("vocab_size", 151936 if third else 152064, label="vocab")
    heads = text.size("num_attention_heads", label="heads")
    kv_heads = text.size("num_key_value_heads", int(heads) if third else 8, label="kv_heads")
    multiple(text, heads, kv_heads)
    d = text.size("head_dim", 128) if kind == "qwen3_vl" else head_dim(text, heads, hidden)
    bias = text.flag("attention_bias")

    with t.module("model.language_model" if third else "model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        for (window, sparse, deep), layers in groups(layer_kinds(text, kind, len(seen[0].deep) if t.images else 0)):
            with t.layers("layers", layers, x) as x:
                y = rms_norm(t, x, "input_layernorm")
                y = self_attention(
                    t,
                    y,
                    heads=heads,
                    kv_heads=kv_heads,
                    head_dim=d,
                    bias=bias or not third,
                    out_bias=bias and third,
                    qk_norm=third,
                    window=window,
                )
                x = add(t, x, y)
                y = rms_norm(t, x, "post_attention_layernorm")
                y = sparse_mlp(t, y, text) if sparse else gated_mlp(t, y, text.size("intermediate_size", label="ffn"))
                x = add(t, x, y)
                x = deepened(t, x, seen[0].deep[0]) if deep else x
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if tied else None)


def layer_kinds(c: Config, kind: str, deep: int) -> list[tuple[int | None, bool, bool]]:
    """Each layer's sliding window (Qwen2's `use_sliding_window`; no release sets it), whether its feed-forward is routed, and whether it is
    one of the first, `deep` in number, that deepstack feeds.
    """
    n = c.layers()
    window = c.size("sliding_window", 4096, label="window") if kind.startswith("qwen2") and c.flag("use_sliding_window") else None
    first = int(c.size("max_window_layers", 80, least=0))
    default = ["sliding_attention" if window and i >= first else "full_attention" for i in range(n)]
    slides = c.kinds("layer_types", n, default, ("sliding_attention", "full_attention")) if window else default
    step, dense = int(c.size("decoder_sparse_step", 1)), layer_set(c, "mlp_only_layers")
    routed = [kind == "qwen3_vl_moe" and i not in dense and (i + 1) % step == 0 for i in range(n)]
    return [(window if slide == "sliding_attention" else None, routed[i], i < deep) for i, slide in enumerate(slides)]


def sparse_mlp(t: Tape, x: Tensor, c: Config) -> Tensor:
    """Qwen3-VL-MoE's routed experts; defaults of Qwen3VLMoeTextConfig."""
    n = c.size("num_experts", 60, label="experts")
    top_k = at_most(c, c.size("num_experts_per_tok", 4, label="top_k"), n)
    ffn = c.size("moe_intermediate_size", 1408, label="expert_ffn")
    with t.module("mlp", x, part="experts"):
        probabilities = route(t, x, "gate", n)
        return experts(
            t,
            x,
            probabilities,
            ffn=ffn,
            n_experts=n,
            top_k=top_k,
            up=("experts.gate_up_proj",),
            down="experts.down_proj",
            transposed=True,
            fused_up=True,
        )
