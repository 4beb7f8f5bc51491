"""DeepSpeed under transformers' Trainer: what a recipe becomes with ZeRO, and the sizes that its configuration's `auto` stands for.

What it does not know: other values than DeepSpeed's defaults and `auto`, offload, objectives other than plain training, fp16 and fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...errors import BadInput, Unknown
from ...ledger import Item, Moment
from ...methods import packed_as
from ...optimizers.master import ZERO, ZERO_3
from ...parallel.zero import ITEM, SOURCES, Zero
from ...tensors import Weight
from ..job import Job

if TYPE_CHECKING:
    from .recipe import Framework
    from .sharing import Sharing

CAST = ("bf16", "bf16-mixed", "bf16-master")
"""Precisions that are one under DeepSpeed: the Trainer's `bf16` sets `bf16.enabled`, which casts the model and has fp32 masters for it
(transformers 5.23 integrations/deepspeed.py, trainer_config_process; DeepSpeed 0.19.8 runtime/engine.py, _configure_distributed_model)."""
HIDDEN = ("hidden_size", "n_embd", "d_model")
"""What model types call their width, by the `attribute_map` of their configurations."""
WHOLE = ("muon", "galore")
"""Optimizers that want matrices."""


def wrapped(job: Job, framework: Framework, sharing: Sharing) -> Framework:
    """The framework with DeepSpeed's wrapper, which clips by itself. Raises BadInput and Unknown for what does not go with it."""
    s, stage = job.scenario, sharing.stage
    if s.objective not in (None, "sft"):
        raise Unknown(f"objective {s.objective!r} with sharding 'zero{stage}': estimated for plain training; choose ddp or fsdp")
    if s.ema:
        raise Unknown(f"ema with sharding 'zero{stage}': who averages flat parts is not known; leave it out, or choose ddp or fsdp")
    if stage == 3 and packed_as(s.method or "full", s.quantization):
        raise Unknown("sharding 'zero3' with packed weights: DeepSpeed does not share out what is not a float; choose zero2 or fsdp")
    if s.kbit_preparation:
        raise BadInput(f"kbit_preparation with sharding 'zero{stage}': DeepSpeed casts what it made fp32 back to bf16; leave it out")
    if s.lora and s.lora.get("dtype", "bf16") != "bf16":
        raise BadInput(f"lora.dtype {s.lora['dtype']!r} with sharding 'zero{stage}': DeepSpeed casts the whole model to bf16; leave it out")
    if (s.optimizer or "").startswith(WHOLE):
        raise BadInput(f"optimizer {s.optimizer!r} with sharding 'zero{stage}': it needs matrices, ZeRO gives it flat parts; choose adamw")
    return replace(framework, master=ZERO_3 if stage == 3 else ZERO, clips=False, adapter_dtype="bf16")


def precision(asked: str, sharing: Sharing) -> str:
    """What a precision means. Raises Unknown where DeepSpeed would do something else than bf16 with masters."""
    if asked not in CAST:
        raise Unknown(f"precision {asked!r} with sharding 'zero{sharing.stage}': estimated are {', '.join(CAST)}, which are one there")
    return "bf16-master"


def zero(job: Job, sharing: Sharing) -> Zero:
    """The sharing with sizes as `auto` fills them in (transformers 5.23 integrations/deepspeed.py, trainer_config_finalize)."""
    whole: Mapping[str, Any] = job.model.config
    configs = (whole, whole.get("text_config") or {})
    hidden = next((config[key] for config in configs for key in HIDDEN if config.get(key)), 0)
    if not hidden:
        raise Unknown(f"{job.model.id}: its config has no hidden_size, from which DeepSpeed's `auto` sizes follow; choose ddp or fsdp")
    return Zero(stage=sharing.stage, ranks=sharing.ranks, bucket=hidden * hidden, small=10 * hidden)


def items(zero: Zero, weights: Iterable[Weight]) -> list[Item]:
    """What a rank has beside its parts: the bucket, and weights that are too small to be shared out."""
    source, always = SOURCES[zero.stage], frozenset({Moment.FORWARD, Moment.LOSS, Moment.BACKWARD, Moment.STEP})
    alive = always if zero.stage == 3 else frozenset({Moment.BACKWARD})
    bucket, small = zero.bucket * ITEM, zero.always(weights)
    return [
        Item(path=("gradients", "bucket"), nbytes=bucket, alive=alive, why="gradients that are reduced together", source=source),
        Item(path=("gathered", "small"), nbytes=small, alive=always, why="whole weights, too small to be shared out", source=source),
    ]
