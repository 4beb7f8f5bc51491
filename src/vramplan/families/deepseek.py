"""DeepSeek-V2, V3 and V3.2, and those built like them: GLM-4.7-Flash, GLM-5, Youtu-LLM.

Multi-head latent attention, a few dense layers first, then fine-grained experts beside shared ones. V3's router is a sigmoid with a
correction bias per expert. V3.2 and GLM-5 attend to the `index_topk` keys that an indexer chooses; in GLM-5.2 most layers share the choice
of an earlier one. Youtu has no experts. The MTP layers that some ship aren't loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BadInput
from ..ops import add, embed, head, rms_norm
from ..tape import Tape
from .blocks import gated_mlp, moe
from .checks import at_most
from .config import Config, groups
from .mla import Latent, latent_attention

MODEL_TYPES = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "youtu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a config of this family leaves out, from transformers 5.23 `models/*/configuration_*.py`."""

    vocab: int
    hidden: int
    ffn: int
    moe_ffn: int
    layers: int
    heads: int
    shared: int
    experts: int
    top_k: int
    dense: int
    q_rank: int = 1536
    nope: int = 128
    v: int = 128
    index_heads: int = 0


DEFAULTS = {
    "deepseek_v2": Sizes(vocab=102400, hidden=4096, ffn=11008, moe_ffn=1407, layers=32, heads=32, shared=2, experts=64, top_k=6, dense=0),
    "deepseek_v3": Sizes(vocab=129280, hidden=7168, ffn=18432, moe_ffn=2048, layers=61, heads=128, shared=1, experts=256, top_k=8, dense=3),
    "deepseek_v32": Sizes(
        vocab=129280, hidden=7168, ffn=18432, moe_ffn=2048, layers=61, heads=128, shared=1, experts=256, top_k=8, dense=3, index_heads=64
    ),
    "glm4_moe_lite": Sizes(
        vocab=154880,
        hidden=2048,
        ffn=10240,
        moe_ffn=1536,
        layers=47,
        heads=20,
        shared=1,
        experts=64,
        top_k=4,
        dense=1,
        q_rank=768,
        nope=192,
        v=256,
    ),
    "glm_moe_dsa": Sizes(
        vocab=154880,
        hidden=6144,
        ffn=12288,
        moe_ffn=2048,
        layers=78,
        heads=64,
        shared=1,
        experts=256,
        top_k=8,
        dense=3,
        q_rank=2048,
        nope=192,
        v=256,
        index_heads=32,
    ),
    "youtu": Sizes(vocab=128256, hidden=2048, ffn=6144, moe_ffn=1, layers=32, heads=16, shared=0, experts=1, top_k=1, dense=32),
}


def forward(t: Tape, c: Config) -> None:
    kind = c.text("model_type")
    if kind not in DEFAULTS:
        raise BadInput(f"{c.path}: 'model_type' is {kind[:60]!r}; here it must be one of {', '.join(DEFAULTS)}")
    z = DEFAULTS[kind]
    hidden, vocab = c.size("hidden_size", z.hidden, label="hidden"), c.size("vocab_size", z.vocab, label="vocab")
    ffn, moe_ffn = c.size("intermediate_size", z.ffn, label="ffn"), c.size("moe_intermediate_size", z.moe_ffn, label="moe_ffn")
    shared = c.size("n_shared_experts", z.shared, label="shared_experts", least=0)
    n_experts, top_k = c.size("n_routed_experts", z.experts, label="experts"), c.size("num_experts_per_tok", z.top_k, label="top_k")
    at_most(c, top_k, n_experts)
    m = Latent(c, c.size("num_attention_heads", z.heads, label="heads"), z.q_rank, z.nope, z.v, z.index_heads)
    correction = None if kind == "deepseek_v2" else "gate.e_score_correction_bias"

    with t.module("model"):
        x, tokens = embed(t, "embed_tokens", vocab, hidden)
        for (sparse, indexer), layers in groups(layer_kinds(c, z)):
            with t.layers("layers", layers, x) as x:
                x = add(t, x, latent_attention(t, rms_norm(t, x, "input_layernorm"), m, indexer=indexer))
                y = rms_norm(t, x, "post_attention_layernorm")
                if sparse:
                    y = moe(
                        t,
                        y,
                        ffn=moe_ffn,
                        n_experts=n_experts,
                        top_k=top_k,
                        shared_ffn=moe_ffn * shared,
                        correction=correction,
                    )
                else:
                    y = gated_mlp(t, y, ffn, bias=c.flag("mlp_bias"))
                x = add(t, x, y)
        x = rms_norm(t, x, "norm")
    head(t, x, "lm_head", vocab, tied=tokens if c.flag("tie_word_embeddings", kind == "youtu") else None)


def layer_kinds(c: Config, z: Sizes) -> list[tuple[bool, bool]]:
    """(has experts, has an indexer of its own) of each layer."""
    n = c.layers(default=z.layers)
    dense = n if c.text("model_type") == "youtu" else c.size("first_k_dense_replace", z.dense, least=0)
    default = ["dense" if i < dense else "sparse" for i in range(n)]
    mlps = c.kinds("mlp_layer_types", n, default, ("dense", "sparse"))
    return [(mlp == "sparse", indexer) for mlp, indexer in zip(mlps, indexers(c, n, z), strict=True)]


def indexers(c: Config, n: int, z: Sizes) -> list[bool]:
    """Which layers choose keys themselves: `indexer_types`, `index_topk_pattern` ("FSSS…"), or every `index_topk_freq`-th (GLM-5.2)."""
    if c.text("model_type") != "glm_moe_dsa":
        return [z.index_heads > 0] * n
    freq, offset = c.size("index_topk_freq", 1), c.size("index_skip_topk_offset", 2, least=0)
    default = ["shared" if max(i - offset + 1, 0) % freq else "full" for i in range(n)]
    if c.has("index_topk_pattern"):
        default = [{"F": "full", "S": "shared"}.get(letter, letter) for letter in c.text("index_topk_pattern")]
    return [kind == "full" for kind in c.kinds("indexer_types", n, default, ("full", "shared"))]
