"""Llama, and the families that differ from it only in a bias, a window, a norm on q and k, or layers without rotary positions.

RMSNorm before attention and before a gated MLP, rotary positions, grouped-query attention, an untied head unless the config ties it.
"""

from __future__ import annotations

from ..errors import BadInput
from ..ops import add, dropout, embed, head, linear, rms_norm
from ..ops.norm_fp32 import rms_norm_fp32
from ..tape import Tape
from .blocks import gated_mlp
from .config import Config, groups
from .dense import Sizes, attend, project, sizes, windows

MODEL_TYPES = ("llama", "mistral", "ministral3", "qwen2", "qwen3", "smollm3", "seed_oss", "ernie4_5", "helium")

KV_HEADS = {"mistral": 8, "ministral3": 8, "smollm3": 4, "seed_oss": 8, "ernie4_5": 2, "helium": 20}
HEAD_DIM = {"ministral3": 128, "qwen3": 128, "seed_oss": 128, "ernie4_5": 128, "helium": 128}
TIED = ("smollm3", "ernie4_5")
"""Defaults of transformers' configuration classes (5.23). Qwen2's 32 kv heads are left out: its configs name them, or have no groups."""


def forward(t: Tape, c: Config) -> None:
    kind = c.text("model_type")
    s = sizes(c, kv_heads=KV_HEADS.get(kind), head_dim=HEAD_DIM.get(kind))
    bias, out_bias, mlp_bias = biases(c, kind)
    norm = rms_norm_fp32 if kind == "helium" else rms_norm
    dropped = c.share("residual_dropout", 0.1) if kind == "seed_oss" else 0.0
    if kind == "seed_oss":
        t.attention_dropout = c.share("attention_dropout", 0.1)

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", s.vocab, s.hidden)
        for (window, rotary), layers in groups(layer_kinds(c, kind, s)):
            with t.layers("layers", layers, x) as x:
                y = norm(t, x, "input_layernorm")
                with t.module("self_attn", y, part="attention"):
                    q, k, v = project(t, y, s, bias=bias)
                    if kind == "qwen3":
                        q, k = rms_norm(t, q, "q_norm", width=s.head_dim), rms_norm(t, k, "k_norm", width=s.head_dim)
                    y = attend(t, q, k, v, s, window=window, rotary=rotary)
                    y = linear(t, y, "o_proj", s.hidden, bias=out_bias)
                x = add(t, x, dropout(t, y, dropped))
                y = gated_mlp(t, norm(t, x, "post_attention_layernorm"), s.ffn, bias=mlp_bias)
                x = add(t, x, dropout(t, y, dropped))
        x = norm(t, x, "norm")
    head(t, x, "lm_head", s.vocab, tied=tokens if c.flag("tie_word_embeddings", kind in TIED) else None)


def biases(c: Config, kind: str) -> tuple[bool, bool, bool]:
    """Whether q, k and v, the attention's output and the MLP have biases."""
    if kind in ("mistral", "ministral3"):
        return False, False, False
    if kind == "qwen2":
        return True, False, False
    if kind == "seed_oss":
        return c.flag("attention_bias", True), c.flag("attention_out_bias"), c.flag("mlp_bias")
    if kind == "ernie4_5":
        bias = c.flag("use_bias")
        return bias, bias, bias
    bias = c.flag("attention_bias")
    return bias, bias and kind != "helium", c.flag("mlp_bias") and kind != "qwen3"


def layer_kinds(c: Config, kind: str, s: Sizes) -> list[tuple[int | None, bool]]:
    """The sliding window of each layer, and whether it has rotary positions: all have, but for every fourth of SmolLM3's.

    Mistral slides in all layers where the config gives a window (7B v0.1; the class default of 4096 is wrong for later ones, so that an
    absent key means none). The others slide only with `use_sliding_window`: Qwen from layer `max_window_layers` on, SmolLM3 where
    there are no rotary positions.
    """
    rotary = [True] * s.layers
    if kind == "smollm3":
        period = int(c.size("no_rope_layer_interval", 4))
        given = c.items("no_rope_layers") or [(i + 1) % period for i in range(s.layers)]
        if len(given) != s.layers:
            raise BadInput(f"{c.path}: 'no_rope_layers' names {len(given)} layers, the model has {s.layers}")
        rotary = [bool(r) for r in given]  # 1 stands for a layer that has them
    sliding = kind in ("mistral", "ministral3") or (kind in ("qwen2", "qwen3", "smollm3") and c.flag("use_sliding_window"))
    window = c.maybe("sliding_window", label="window") if sliding else None
    if window is None:
        return list(zip([None] * s.layers, rotary, strict=True))
    first = int(c.size("max_window_layers", 28, least=0)) if kind in ("qwen2", "qwen3") else 0
    slides = [not r if kind == "smollm3" else i >= first for i, r in enumerate(rotary)]
    return list(zip(windows(c, window, ["sliding_attention" if w else "full_attention" for w in slides]), rotary, strict=True))
