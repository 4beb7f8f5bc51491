"""What transformers' classes did by version, where it changes the memory of a training step: attention, rotary tables, experts, losses.

Read in the released packages, every minor version from 4.36 to 4.57, a third of those from 5.0 to 5.23, and some before. What is said of
a model type holds until the version named with it (`NEVER`: to this day); a type that is not named has always been as all are now. torch is
taken to be of the release's time. It does not know the masks that 4.38 and 4.39 gave sdpa, nor GPT-2's own buffers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ...errors import Unknown
from ...ops.loss import Loss
from ...units import MiB
from ..job import release

Release = tuple[int, ...]

FIRST: Release = (4, 36)
"""Before, no class had sdpa, and norms, rotary caches and masks were others."""
OTHERS_FIRST: Mapping[str, Release] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta"), (4, 16)),
    "mixtral": (4, 40),
    "opt": (4, 49),
    **dict.fromkeys(("distilbert", "modernbert", "deepseek_v2", "deepseek_v3", "dbrx", "ernie4_5_moe", "glm4_moe", "glm4v_moe"), (5, 0)),
    **dict.fromkeys(("gpt_oss", "granitemoe", "granitemoehybrid", "hunyuan_v1_moe", "jamba", "llama4", "llama4_text"), (5, 0)),
    **dict.fromkeys(("phimoe", "qwen3_next", "qwen3_vl_moe"), (5, 0)),
}
"""Types whose classes have been what they were in 4.36 for longer, or had experts or attention of another kind until later
(Mixtral's, lists of rows)."""
MASKED = ((4, 38), (4, 40))
"""In between, sdpa got a causal mask, copied by each layer, and 4.38 kept one of (longest context)² (`LlamaModel._update_causal_mask`)."""
NEVER: Release = (10**6,)

TORCH_1_11: Release = (4, 18)
"""Of April 2022. Before torch 1.11, softmax kept its input for backward as well as its output (pytorch PR #66018)."""
TORCH_1_13: Release = (4, 24)
"""Of November 2022. Before torch 1.13, all of its kernels were loaded at once (pytorch PR #86509)."""
EAGER_CONTEXT = 1343 * MiB, "transformers docs, perf_train_gpu_one of 2022: 1,343 MiB on a V100; pytorch PR #86509"
"""Bytes of the CUDA context then, on one GPU of the time."""
TORCH_2_0: Release = (4, 27)
"""Of March 2023. Before torch 2.0, `zero_grad` filled gradients with zeros and so kept them, and AdamW went weight by weight."""
TORCH_ADAMW: Release = (4, 32)
"""`training_args.py`: `optim` is `adamw_torch` since then; before it was `adamw_hf`, a loop over the weights (`optimization.py` AdamW)."""
FUSED_ADAMW: Release = (4, 54)
"""`training_args.py`: `optim` is `adamw_torch_fused` since then, with torch 2.8; before it was `adamw_torch`, which is foreach on a GPU."""
UNPADDED: Release = (5, 0)
"""`masking_utils.py`: eager attention of encoders has a mask only where something is padded since then; before, always one of [b, 1, 1, s]
in the weights' precision (`get_extended_attention_mask`)."""
GROUPED_KV: Release = (4, 54)
"""`integrations/sdpa_attention.py`: `enable_gqa` since then; before, keys and values were repeated to all heads (`repeat_kv`)."""
UNCOPIED: Release = (4, 56)
"""There too: queries, keys and values were made contiguous, head by head, before."""
SHIFTED_LABELS: Release = (4, 49)
"""`loss/loss_utils.py` ForCausalLMLoss: labels are shifted since then, not logits."""
FSDP2: Release = (5, 10)
"""`training_args.py`: `fsdp_config["version"]` is 2 since then, before it was 1."""
GROUPED_EXPERTS: Release = (5, 0)
"""`integrations/moe.py`: experts' matrices are one tensor and their products grouped since then; before, a loop ran over modules."""

SDPA: Mapping[str, Release] = {
    "mistral": (4, 37),
    **dict.fromkeys(("phi", "stablelm"), (4, 39)),
    "bert": (4, 41),
    **dict.fromkeys(("gpt2", "gpt_neox"), (4, 43)),
    **dict.fromkeys(("phi3", "roberta", "xlm-roberta"), (4, 45)),
    **dict.fromkeys(("distilbert", "opt", "llava"), (4, 46)),
    "t5": (5, 15),
    **dict.fromkeys(("bloom", "mpnet", "gpt_oss", "mimo_v2_flash", "deepseek_v4"), NEVER),
}
"""Attention is eager until then (`_supports_sdpa`)."""

COMMON_ATTENTION: Mapping[str, Release] = {
    "gpt_neox": (4, 49),
    **dict.fromkeys(("opt", "granitemoe", "mllama"), (4, 52)),
    "qwen2_vl": (4, 53),
    **dict.fromkeys(("gpt_bigcode", "qwen2_5_vl"), (4, 54)),
    **dict.fromkeys(("dbrx", "falcon", "jamba", "nemotron", "olmoe", "phimoe", "qwen2_moe", "stablelm", "mistral3"), (5, 0)),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "distilbert", "modernbert"), (5, 0)),
}
"""Attention is a class of its own until then, others until 4.48, when `integrations/sdpa_attention.py` became that of most."""

RETURNS_FP32: Mapping[str, Release] = {
    **dict.fromkeys(("mistral", "granite", "granitemoe", "starcoder2", "llava"), (4, 48)),
    "qwen2_vl": (4, 52),
    **dict.fromkeys(("mamba", "mamba2"), (5, 20)),
}
"""The logits that the model returns are fp32 until then, and the loss takes them (`logits.float()` in `forward`); others until 4.46, when
the loss began to convert its own copy (`loss_function`)."""
OWN_PRECISION: Mapping[str, Release] = {
    **dict.fromkeys(("gpt2", "gpt_bigcode", "opt", "bloom", "falcon", "dbrx", "stablelm"), (4, 48)),
    "gpt_neox": (4, 49),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "t5"), NEVER),
}
"""The loss takes the logits as they are until then (`CrossEntropyLoss` in `forward`); of encoders, the masked language model's."""

OWN_TABLES: Mapping[str, Release] = {
    "llama": (4, 43),
    **dict.fromkeys(("qwen2", "qwen2_moe", "phi", "stablelm", "starcoder2", "falcon", "gpt_neox", "cohere"), (4, 45)),
    **dict.fromkeys(("mistral", "mixtral", "gemma", "gemma2", "olmo", "olmo2", "phi3"), (4, 48)),
    **dict.fromkeys(("dbrx", "olmo3", "lfm2"), (5, 0)),
}
"""Each layer makes its own cosines and sines until then; since, the model makes them once."""
CACHED_TABLES: Mapping[str, Release] = {
    **dict.fromkeys(("llama", "olmo"), (4, 41)),
    "mistral": (4, 42),
    "mixtral": (4, 48),
    **dict.fromkeys(("qwen2", "qwen2_moe", "phi", "stablelm", "starcoder2", "falcon", "gpt_neox"), (4, 45)),
}
"""Each layer holds those of every position until then (`cos_cached`, `sin_cached`: buffers in the weights' precision)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What a release does with a model type. `sdpa`: whether its class has it; `optimizer`: the Trainer's default; `optimizers`: what
    other names meant; `zeroes`: gradients stay from one step to the next; `context`: the CUDA context, where it is not today's; `fsdp`: the
    Trainer's version of FSDP.
    """

    sdpa: bool
    kv: Literal["grouped", "repeated"]
    layout: Literal["by token", "by head"]
    rotary: Literal["shared", "own", "cached"]
    experts: Literal["grouped", "looped"]
    logits: Literal["all", "all-fp32"]
    loss: Loss
    optimizer: str
    optimizers: Mapping[str, str]
    zeroes: bool
    context: tuple[int, str] | None
    softmax_keeps: Literal["output", "both"]
    padding_mask: Literal["needed", "always"]
    fsdp: int


def behaviour(version: str, model_type: str, *, trains: bool = True) -> Behaviour:
    """What `version` does with `model_type`. Raises Unknown for versions whose training steps are not described."""
    number = release(version)
    first = OTHERS_FIRST.get(model_type, FIRST)
    if trains and number < first:
        raise Unknown(f"engine_version {version!r}: training of {model_type!r} is estimated for transformers since {first[0]}.{first[1]}")
    if trains and MASKED[0] <= number < MASKED[1]:
        raise Unknown(
            f"engine_version {version!r}: 4.38 and 4.39 gave attention masks of their own, which are not estimated; see 4.37, 4.40"
        )

    def until(table: Mapping[str, Release], default: Release = FIRST) -> bool:
        return number < table.get(model_type, default)

    own, common = until(OWN_PRECISION), not until(COMMON_ATTENTION, (4, 48))
    return Behaviour(
        sdpa=not until(SDPA),
        kv="grouped" if common and number >= GROUPED_KV else "repeated",
        layout="by head" if common and number < UNCOPIED else "by token",
        rotary="cached" if until(CACHED_TABLES) else "own" if until(OWN_TABLES) else "shared",
        experts="looped" if number < GROUPED_EXPERTS else "grouped",
        logits="all-fp32" if not own and until(RETURNS_FP32, (4, 46)) else "all",
        loss=Loss(upcast=not own, shifts_logits=number < SHIFTED_LABELS),
        optimizer="adamw-forloop" if number < TORCH_ADAMW else "adamw" if number < FUSED_ADAMW else "adamw-fused",
        optimizers={"adamw": "adamw-forloop"} if number < TORCH_2_0 else {},
        zeroes=number < TORCH_2_0,
        context=EAGER_CONTEXT if number < TORCH_1_13 else None,
        softmax_keeps="both" if number < TORCH_1_11 else "output",
        padding_mask="always" if number < UNPADDED else "needed",
        fsdp=1 if number < FSDP2 else 2,
    )
