"""Which mixtures of experts TRL adds a balancing loss for, by default and by their configs.

Where transformers' config class knows `output_router_logits`, and a coefficient is there that is not zero. Not known: TRL's own
`router_aux_loss_coef`; the config's is taken.
"""

from __future__ import annotations

from collections.abc import Mapping

from ....errors import BadInput

COUNTED = (
    "ernie4_5_moe", "flex_olmo", "gpt_oss", "jamba", "minimax_m2", "minimax_m3_vl_text", "mixtral", "olmoe", "qwen2_moe",
    "qwen3_5_moe_text", "qwen3_moe", "qwen3_next", "qwen3_vl_moe_text",
)  # fmt: skip
"""Model types of texts whose config class has a coefficient: transformers 5.23 `models/*/configuration_*.py`."""
UNCOUNTED = ("deepseek_v4", "glm4v_moe_text", "granitemoe", "granitemoehybrid", "llama4_text", "phimoe")
"""Likewise, whose config class has no `num_experts`, which TRL 1.16 asks for (`trainer/utils.py` add_fused_lm_head)."""


def balanced(config: Mapping[str, object], model: str) -> bool:
    """Whether TRL adds the loss. Raises BadInput for a `model` at whose config it fails."""
    outer = str(config.get("model_type"))
    text = config.get("text_config")
    kind = str(text.get("model_type") or f"{outer}_text") if isinstance(text, Mapping) else outer
    coefficient = (text if isinstance(text, Mapping) else config).get("router_aux_loss_coef", 0.001)
    if not coefficient or kind not in (*COUNTED, *UNCOUNTED):
        return False
    if kind in UNCOUNTED and "num_experts" not in (text if isinstance(text, Mapping) else config):
        raise BadInput(
            f"{model}: TRL 1.16 asks for num_experts, which a config of {kind} lacks, and fails; set its router_aux_loss_coef to 0"
        )
    return True
