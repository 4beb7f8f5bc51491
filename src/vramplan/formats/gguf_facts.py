"""What llama.cpp's quantisation rules ask about a model as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..tensors import Weight
from .gguf_names import category

TYPES_70B = ("qwen2", "qwen2_vl", "qwen2_5_vl", "nemotron-nas")
"""Beside Llama with grouped queries, the types that are LLM_TYPE_70B with 80 layers.

Source: llama.cpp `src/models/*.cpp`, load_arch_hparams.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What the rules ask about a model, beside the tensor at hand.

    `layers`: of the model; `kv_heads`: those of layer 0 (0 where it has no attention, 1 for MLA, which llama.cpp runs as MQA); `experts`:
    0 if none; `tied`: no output matrix of its own; `is_70b`: llama.cpp's LLM_TYPE_70B; `falcon`: the architecture `falcon`.
    `routing_bias`: routers have a per-expert bias (DeepSeek-V3's e_score_correction_bias and its like).
    `values`, `downs`: the layers of all attn_v-like and of all ffn_down tensors, ascending, a layer as often as it has one.
    `key_share`: of MLA's kv_b matrix, the rows that become attn_k_b, as (rows, of); `qkv_share`: of Qwen3-Next's in_proj_qkvz, those that
    become attn_qkv, where the rest is attn_gate. `mxfp4_experts`: the checkpoint's own are in MXFP4, which conversion repacks as it is.
    """

    layers: int
    heads: int
    kv_heads: int
    experts: int = 0
    tied: bool = False
    is_70b: bool = False
    falcon: bool = False
    values: Sequence[int] | None = None
    downs: Sequence[int] | None = None
    routing_bias: bool = False
    key_share: tuple[int, int] = (1, 2)
    key_width: int = 128
    qkv_share: tuple[int, int] = (2, 3)
    mxfp4_experts: bool = False

    @property
    def gqa(self) -> int:
        """llama.cpp's n_gqa: heads per KV head of layer 0, 0 where it has no attention."""
        return self.heads // self.kv_heads if self.kv_heads else 0


def model_facts(
    weights: Iterable[Weight],
    *,
    heads: int,
    kv_heads: int,
    model_type: str = "",
    qk_nope: int = 128,
    v_dim: int = 128,
    mxfp4_experts: bool = False,
) -> ModelFacts:
    """The facts of a walked model: layers, experts, tied embedding and the order of tensors from its weights, the rest from its config.

    `heads`, `kv_heads`: of layer 0; `qk_nope`, `v_dim`: MLA's `qk_nope_head_dim` and `v_head_dim`, of no interest to other models.
    """
    values: list[int] = []
    downs: list[int] = []
    layers = experts = 0
    tied, mla, biased = True, False, False
    convolved, fused = 2, 3
    for weight in weights:
        if weight.tower is not None:
            continue
        where = category(weight)
        tied = tied and where != "output"
        mla = mla or where == "kv_b"
        biased = biased or weight.kind == "buffer"
        if weight.layers is None:
            continue
        layers = max(layers, weight.layers[-1] + 1)
        experts = max(experts, weight.copies)
        if where == "qkvz":
            fused = int(weight.shape[0])
        elif weight.name.endswith("linear_attn.conv1d.weight"):
            convolved = int(weight.shape[0])
        if where in ("attn_v", "qkvz"):
            values += weight.layers
        elif where == "ffn_down":
            downs += weight.layers
    is_70b = layers == 80 and (model_type in TYPES_70B or (model_type == "llama" and heads != kv_heads))
    return ModelFacts(
        layers=layers,
        heads=heads,
        kv_heads=1 if mla else kv_heads,
        experts=experts if experts > 1 else 0,
        tied=tied,
        is_70b=is_70b,
        falcon=model_type == "falcon",
        values=sorted(values),
        downs=sorted(downs),
        key_share=(qk_nope, qk_nope + v_dim),
        key_width=qk_nope,
        routing_bias=biased,
        qkv_share=(convolved, fused),
        mxfp4_experts=mxfp4_experts,
    )
