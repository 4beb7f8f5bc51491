"""What llama.cpp's quantiser sees in a weight: the category of tensor that `convert_hf_to_gguf.py` makes of it.

Judged by the end of the checkpoint's name, across families. Source: gguf 0.19.0 `tensor_mapping.py` (names), llama.cpp
`src/llama-quant.cpp` at 007dbbf3f (`tensor_get_category`, `tensor_allows_quantization`) and `conversion/base.py` (what is forced to F32).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

from ..tensors import Weight

Category = Literal[
    "attn_v", "attn_k", "attn_q", "attn_output", "ffn_down", "ffn_up", "kv_b", "qkvz", "token_embd", "output", "other", "f32", "source"
]
"""`f32`: never quantised, stored as F32; `source`: never quantised, in the type that the model was converted to; `other`: the base type.

`attn_v` holds fused query-key-value too, `ffn_up` the gate (one rule for both), `kv_b` MLA's up-projection and `qkvz`
Qwen3-Next's fused input projection, which conversion splits in two.
"""

_ENDINGS: dict[Category, tuple[str, ...]] = {
    "attn_v": (
        "v_proj", "wv", "v_lin", "self.value", "SelfAttention.v", "EncDecAttention.v", "attn.v", "multi_head_attention.value",
        "c_attn", "Wqkv", "query_key_value", "qkv_proj", "W_pack", "in_proj_qkv", "attn.qkv",
        "language_expert_query_key_value",
    ),
    "attn_k": ("k_proj", "wk", "k_lin", "self.key", "SelfAttention.k", "EncDecAttention.k", "attn.k", "multi_head_attention.key"),
    "attn_q": ("q_proj", "wq", "q_lin", "self.query", "SelfAttention.q", "EncDecAttention.q", "attn.q", "multi_head_attention.query"),
    "attn_output": (
        "o_proj", "attention.wo", "attn.Wo", "out_lin", "attn.c_proj", "attn.out_proj", "attention.out_proj", "attention.dense",
        "self_attention.dense", "self_attn.out_proj",
        "self_attn.dense", "self_attn.language_expert_dense", "attention.output.dense", "multi_head_attention.linear",
    ),
    "ffn_down": (
        "down_proj", "w2", "fc2", "mlp.c_proj", "dense_4h_to_h", "output.dense", "lin2", "output_linear", "mlp.Wo", "ffn.proj_2", "fc_out",
        "DenseReluDense.wo", "mlp.wo", "experts.down",
    ),
    "ffn_up": (
        "up_proj", "gate_proj", "gate_up_proj", "w1", "w3", "v1", "fc1", "c_fc", "c_fc_0", "c_fc_1", "dense_h_to_4h", "intermediate.dense",
        "lin1", "input_linear", "mlp.Wi", "ffn.proj_1", "fc_in", "DenseReluDense.wi", "DenseReluDense.wi_0", "DenseReluDense.wi_1",
        "mlp.wi", "w12", "fc11", "fc12", "experts.up", "experts.gate",
    ),
    "kv_b": ("kv_b_proj",),
    "qkvz": ("in_proj_qkvz",),
    "other": ("self_attn.gate_proj",),
    "f32": ("relative_attention_bias", "shared_expert_gate"),
    "source": (
        "altup.correction_coefs", "altup.prediction_coefs", "altup_projections.{i}", "altup_unembed_projections.{i}", "linear_left",
        "linear_right", "index_k_proj", "index_q_proj", "per_layer_model_projection", "modality_router", "indexer.k_proj", "indexer.q_proj",
    ),
}  # fmt: skip
_BY_ENDING = {ending: category for category, endings in _ENDINGS.items() for ending in endings}

_TOKEN_EMBEDDINGS = (
    ".embed_tokens", ".embed_tokens_per_layer", ".wte", ".word_embeddings", ".embed_in", ".tok_embeddings", ".shared",
    ".embed", ".backbone.embeddings", ".backbone.embedding", ".model.embedding",
)  # fmt: skip


def category(weight: Weight) -> Category:
    """How the quantiser files `weight` of the language model.

    >>> weight = Weight(name="model.layers.{i}.mlp.experts.{e}.down_proj.weight", shape=(2048, 768), kind="experts", part="experts")
    >>> category(weight)
    'ffn_down'
    """
    kind = weight.kind
    if len(weight.shape) < 2 or 1 in weight.shape or kind in ("norm", "conv", "router", "buffer"):
        return "f32"
    if kind == "head":
        return "output"
    if kind == "embed":
        return "token_embd" if f".{weight.name.removesuffix('.weight')}".endswith(_TOKEN_EMBEDDINGS) else "f32"
    return _by_name(weight.name)


@lru_cache(maxsize=4096)
def _by_name(name: str) -> Category:
    """The longest ending of whole parts decides: `attention.output.dense` before `output.dense`."""
    parts = name.removesuffix(".weight").split(".")
    for length in (3, 2, 1):
        found = _BY_ENDING.get(".".join(parts[-length:]))
        if found is not None:
            return found
    return "other"
