"""Megatron: pre-training, full training and LoRA with Megatron-LM's core, as Megatron-Bridge and NeMo run it too.

Weights and activations in bf16, gradients summed in fp32 in one buffer, fp32 masters and states, which the distributed optimizer spreads
over data-parallel ranks; TransformerEngine's layers, which keep what torch's fused ones do; one kernel for gate, activation and product;
attention without scores; logits and their softmax in parts of the vocabulary. Experts are whole on their ranks (Megatron's
`expert_tensor_parallel_size` 1), the dispatcher is `alltoall`, and tokens
fall evenly unless told. What it does not know: FP8, attention that is
not fused, encoders, multi-token prediction, offload, overlap of communication, CUDA graphs, Megatron-FSDP, what torch's allocator reserves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...errors import BadInput, Unknown
from ...kernels import Kernels
from ...ledger import Item, Moment, ledger
from ...ops.loss import vocabulary_parallel_cross_entropy
from ...optimizers import named
from ...parallel.context import ring_attention, tokens_of
from ...parallel.expert import spread_experts
from ...parallel.sequence import Style, sequence_parallel
from ...parallel.stage import depth_of
from ...parallel.tensor import tensor_parallel
from ...runs import Checkpointing
from ...tape import Tape
from ..job import Account, Device, Job
from ..nccl import untold
from .megatron_lora import RANK, bridged
from .megatron_ranks import Ranks, asked, chunks_of
from .megatron_recompute import recomputed
from .megatron_stage import Stages, stage_items
from .recipe import MEGATRON as KEYS
from .recipe import Framework, Recipe, read
from .step import filled_in, form_of, walked, workspaces
from .stepping import LOADED, TRAINING

NAMES = ("megatron",)
ABOUT = "full training and LoRA with tensor, sequence, pipeline and expert parallelism and the distributed optimizer; not: FP8"
VERSION = "0.19"

BF16 = ("bf16-master", "bf16-mixed", "bf16")
"""One precision under Megatron: its `bf16`, which has fp32 masters (Megatron-Bridge 0.6 `training/mixed_precision.py` bf16_mixed)."""
VOCABULARY = 128
"""It is padded to a multiple of it on each rank (Megatron-Core's `make_vocab_size_divisible_by`)."""
KERNELS = Kernels(
    attention="flash",
    norm="fused",
    mlp="merged",
    rope="single",
    qkv="joined",
    experts="dispatched",
    layout="dense",
    logits="all",
    recurrence="fused",
)
WHOLE_TOWERS = ("gemma3", "gemma4", "glm4v_moe", "qwen2_5_vl", "kimi_k25")
"""Their vision towers are transformers' modules, which every rank has whole (Megatron-Bridge 0.6 `models/*/modeling_*.py`)."""
WRITTEN_OUT = frozenset(f"{side}_feedforward_layernorm{which}" for side in ("pre", "post") for which in ("", "_1", "_2"))
"""Gemma 4's norms around its MLP and experts (Megatron-Bridge 0.6 `models/gemma/modeling_gemma4.py`, Gemma4TransformerLayer)."""
STYLE = Style(regathers=True, copied=True, vocabulary=VOCABULARY)


def account(job: Job) -> Account:
    """A steady step of the stage that takes most, and the other stages. Raises Unknown and BadInput for what Megatron or this has not."""
    s, one = job.scenario, _of_one(job)
    ranks = asked(s)
    _check(job, ranks)
    recipe = read(one, _framework(job))
    if recipe.adapters:
        recipe = replace(recipe, adapters=bridged(recipe.adapters, ranks, full=recipe.checkpointing == "full"))
    whole = walked(one, replace(recipe, length=tokens_of(recipe.length, ranks.mesh.context)))
    tape = _split(whole, ranks, str(job.model.config.get("model_type")))
    if recipe.checkpointing == "selective":
        tape = recomputed(tape, s.recompute_modules or ("core_attn",))
    layers = chunks_of(ranks, depth_of(tape), s.pipeline_layers)
    stages = Stages(tape, ranks, layers, _full(job, recipe))
    kinds = [_device(job, recipe, stages, stage) for stage in range(ranks.mesh.pipeline)]
    worst = max(kinds, key=lambda kind: ledger(kind.items).peak()[1])
    peak, context = ledger(worst.items).peak()[1], MEGATRON.context[0]
    return Account(
        tape=whole,
        items=list(worst.items),
        room=worst.room,
        rank=worst.rank,
        count=worst.count,
        others=[kind for kind in kinds if kind is not worst],
        filled={**filled_in(recipe), "gradient_accumulation": ranks.micro_batches, "gpu_count": ranks.mesh.ranks},
        facts={
            "trainable_parameters": sum(weight.numel for weight in whole.weights if weight.trained and weight.kind != "buffer"),
            "peak_allocated": peak - context,
            "process": peak,
            "load_peak": sum(item.nbytes for item in worst.items if Moment.LOAD in item.alive and item.path[0] == "weights"),
        },
        outside=context,
        assumptions=[
            f"megatron {recipe.version}, a step after the first; bf16 weights with fp32 masters, gradients summed in {_gradients(job)}",
            *ranks.assumptions(),
            *(recipe.adapters.assumptions(whole.weights) if recipe.adapters else ()),
            *_of_experts(tape, s.expert_imbalance),
            "all sequences as long as the longest" + (f"; {untold(ranks.mesh.groups)}" if ranks.mesh.ranks > 1 else ""),
        ],
    )


def _check(job: Job, ranks: Ranks) -> None:
    """Raise Unknown for what is not estimated, BadInput for what contradicts itself."""
    s = job.scenario
    job.refuse("offload", "optimizer_in_backward", "ema", "checkpoint_every", "trained_modules", "quantization")
    if s.attention == "eager":
        raise Unknown("attention 'eager': Megatron's own unfused attention is not estimated; leave it out, or say flash")
    if s.optimizer and named(s.optimizer) not in ("adamw", "adamw-fused"):
        raise Unknown(f"optimizer {s.optimizer!r}: estimated for engine 'megatron' is its fused Adam, adamw-fused")
    if s.optimizer_dtype not in (None, "fp32", "bf16"):
        raise Unknown(f"optimizer_dtype {s.optimizer_dtype!r}: estimated for engine 'megatron' are fp32 and bf16")
    if s.recompute_modules and s.checkpointing not in (None, "selective"):
        raise BadInput(f"recompute_modules with checkpointing {s.checkpointing!r}: they are what selective recomputes")
    if s.expert_imbalance and s.expert_imbalance < 1:
        raise BadInput(f"expert_imbalance {s.expert_imbalance:g}: the fullest rank gets no fewer rows than ranks send; it is at least 1")
    if s.recompute_layers and s.checkpointing != "full":
        raise BadInput(f"recompute_layers {s.recompute_layers}: it is what checkpointing full recomputes; add that")
    if s.optimizer_dtype == "bf16" and not ranks.distributed:
        raise BadInput("optimizer_dtype 'bf16': Megatron's precision-aware optimizer is the distributed one; add sharding zero1")


def _of_one(job: Job) -> Job:
    """The job as one rank has it: what its recipe is follows from that."""
    s = job.scenario
    precision = "bf16-master" if s.precision in BF16 else s.precision
    keys = (*KEYS, "gpu_count", "sharding", "tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel")
    blank: dict[str, Any] = dict.fromkeys(keys)
    return replace(job, scenario=replace(s, **blank, data_parallel=None, precision=precision, optimizer_dtype=None, optimizer=None))


def _full(job: Job, recipe: Recipe) -> Checkpointing | None:
    """Whole layers that are recomputed: all, or the first of each stage's chunk (Megatron-Core 0.19 `core/recompute.py`, `block`)."""
    whole = recipe.recomputes() if recipe.checkpointing == "full" else None
    return replace(whole, first=job.scenario.recompute_layers or 0) if whole else None


def _framework(job: Job) -> Framework:
    """Megatron with the kernels that it has for a model: of Gemma 4's norms most are written out in torch's operators."""
    gemma = str(job.model.config.get("model_type")).startswith("gemma4")
    imbalance = round(1000 * (job.scenario.expert_imbalance or 1))
    kernels = replace(KERNELS, written_out=WRITTEN_OUT if gemma else frozenset(), imbalance=imbalance)
    return replace(MEGATRON, kernels=lambda recipe: kernels)


def _split(tape: Tape, ranks: Ranks, model_type: str) -> Tape:
    """The tape as a rank has it. Towers are split as the language model is, unless they are transformers' own."""
    mesh, tape = ranks.mesh, spread_experts(tape, ranks.mesh.expert)
    mine = sequence_parallel(tape, mesh.tensor, STYLE) if ranks.sequence else tensor_parallel(tape, mesh.tensor, vocabulary=VOCABULARY)
    if model_type in WHOLE_TOWERS:
        kept = zip(tape.weights, mine.weights, strict=True)
        mine = replace(mine, weights=[before if before.tower else after for before, after in kept])
    return ring_attention(mine, mesh.context)


def _device(job: Job, recipe: Recipe, stages: Stages, stage: int) -> Device:
    """What each rank of a stage holds."""
    items = stage_items(
        stages,
        stage,
        form_of(job, recipe),
        name=recipe.optimizer,
        states=job.scenario.optimizer_dtype,
        gradients=4 if _gradients(job) == "fp32" else 2,
        origin=job.model.origin,
    )
    context = Item(path=("cuda context",), nbytes=MEGATRON.context[0], alive=LOADED, why="one process", source=MEGATRON.context[1])
    size = stages.ranks.mesh.stage
    items += [*_gathering(stages, stage), *workspaces(job), context]
    return Device(rank=stage * size, count=size, gpu=job.gpu, room=job.gpu.usable if job.gpu else None, items=items)


def _gathering(stages: Stages, stage: int) -> list[Item]:
    """The head's input with the tokens of all tensor-parallel ranks, in a buffer that stays where the head trains."""
    if not stages.ranks.sequence or stage + 1 < stages.ranks.mesh.pipeline:
        return []
    head = [op for op in stages.tape.ops if any(weight.kind == "head" or weight.tied for weight in op.weights)][-1]
    if not any(weight.trained for weight in head.weights):
        return []  # linear_with_frozen_weight gathers into a tensor of its own
    why, source = "the head's input of all ranks, in one buffer for good", "Megatron-Core 0.19 core/tensor_parallel/layers.py"
    return [Item(path=("gathered", "head's input"), nbytes=head.reads[0].nbytes, alive=TRAINING, why=why, source=source)]


def _gradients(job: Job) -> str:
    return job.scenario.gradient_dtype or "fp32"


def _of_experts(tape: Tape, imbalance: float | None) -> list[str]:
    if not any(weight.kind == "experts" for weight in tape.weights):
        return []
    rows = f"{imbalance:g} rows come to a rank for each that it sends" if imbalance else "tokens fall evenly (expert_imbalance 1)"
    return [f"experts: {rows} and none is dropped; expert_tensor_parallel_size 1, dispatcher alltoall"]


def _loss(tape: Tape, recipe: Recipe) -> None:
    vocabulary_parallel_cross_entropy(tape, tape.ops[-1].writes[0])


def _fused_loss(tape: Tape, recipe: Recipe) -> None:
    vocabulary_parallel_cross_entropy(tape, tape.ops[-1].writes[0], in_place=True)


MEGATRON = Framework(
    name="megatron",
    version=VERSION,
    kernels=lambda recipe: KERNELS,
    losses={"plain": _loss, "fused": _fused_loss},
    precision="bf16-master",
    precisions=("bf16-master",),
    checkpointings=("none", "full", "selective"),
    methods=("full", "lora"),
    rank=RANK,
    adapter_dtype="bf16",
    packed=(),
)
