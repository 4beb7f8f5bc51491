"""transformers' Trainer (with PEFT and bitsandbytes) on one GPU: the steady training step, its peak and the moment of it.

Weights, gradients and optimizer states follow from the recipe; what the forward pass saves and what backward makes from the sweep of the
tape. `peak_allocated` is `torch.cuda.max_memory_allocated()` of a step after the first, `process` adds the CUDA context. What it does not
know: the allocator's slack, kernels' hidden workspaces, several GPUs, offloading, the peak while loading, k-bit preparation, dropout in the
model, DPO and GRPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ...errors import BadInput, Unknown
from ...formats import scheme, weights_nbytes
from ...ledger import Item, Moment
from ...methods import Adapters, Full
from ...ops.loss import cross_entropy
from ...optimizers import optimizer
from ...sweep import Peak, Sweep, sweep
from ...tape import Dim, Kernels, Tape, Weight, shape_label
from ...units import gib
from ..job import MANY, Account, Job, release
from ..lines import item_of_share
from ..transformers import CUDA_CONTEXT, cublas

NAMES = ("transformers",)
ABOUT = (
    "one GPU: full, LoRA and QLoRA; pure and autocast precision; checkpointing; not: dropout, offload, DPO, GRPO, fused losses, load peak"
)
VERSION = "5.23"

TRAINING = frozenset({Moment.FORWARD, Moment.LOSS, Moment.BACKWARD, Moment.STEP})
PRECISIONS = {"fp32": (4, 0), "bf16": (2, 0), "fp16": (2, 0), "bf16-mixed": (4, 2), "fp16-mixed": (4, 2)}
"""Bytes of a weight's element, and of autocast's lower precision (0: off)."""
PACKED = ("nf4", "fp4")
UNSHIFTED = (4, 50)
"""Since then ForCausalLMLoss shifts the labels and not the logits (transformers PR #36044); before, a copy of the fp32 logits was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a scenario means for the Trainer, with every default filled in."""

    version: str
    method: str
    precision: str
    batch: int
    length: int
    passes: int
    checkpointing: bool
    attention: Literal["eager", "sdpa"]
    optimizer: str
    adapters: Adapters | None

    @property
    def itemsize(self) -> int:
        """Bytes of a weight's element."""
        return PRECISIONS[self.precision][0]

    def size(self, weight: Weight) -> int:
        """Bytes of an element of a weight, and of its gradient."""
        return 4 if weight.dtype == "fp32" else self.itemsize


def account(job: Job) -> Account:
    """A steady step of `micro_batch` × `sequence_length` tokens."""
    s, recipe = job.scenario, _recipe(job)
    tape = _tape(job, recipe)
    swept = sweep(tape, gradient_itemsize=recipe.size, checkpointing=recipe.checkpointing, accumulates=recipe.passes > 1)
    trained = list({id(weight): weight for weight in tape.weights if weight.trained and weight.kind != "buffer"}.values())
    gradients = sum(weight.numel * recipe.size(weight) for weight in trained)
    stepper = optimizer(recipe.optimizer)

    def state_size(weight: Weight) -> int:
        return {"fp32": 4, "bf16": 2, "fp16": 2}.get(s.optimizer_dtype or "", recipe.size(weight))

    states = sum(stepper.states(weight, state_size(weight)) for weight in trained)
    count = sum(weight.numel for weight in trained)
    items = [*_weights(job, tape, recipe)]
    if not stepper.paged:
        why = f"{recipe.optimizer} for {count:,} trained parameters"
        items.append(Item(path=("optimizer states",), nbytes=states, alive=TRAINING, why=why, source=stepper.source))
    items += _pass_items(swept, gradients, recipe.passes > 1)
    temporary, step = stepper.temporary(trained, state_size), frozenset({Moment.STEP})
    items.append(Item(path=("optimizer step",), nbytes=temporary, alive=step, why="made and freed by the step", source=stepper.source))
    items.append(cublas(job.gpu, TRAINING))
    allocated = max(sum(item.nbytes for item in items if moment in item.alive) for moment in TRAINING)
    items.append(Item(path=("cuda context",), nbytes=CUDA_CONTEXT, alive=TRAINING, why="one process", source="pytorch #107667"))
    paged = f"{gib(states)} of optimizer states are paged: managed memory, on the GPU as far as there is room"
    return Account(
        tape=tape,
        items=items,
        room=job.gpu.usable if job.gpu else None,
        filled={
            "engine_version": recipe.version,
            "method": recipe.method,
            "precision": recipe.precision,
            "micro_batch": recipe.batch,
            "sequence_length": recipe.length,
            "gradient_accumulation": recipe.passes,
            "checkpointing": "full" if recipe.checkpointing else "none",
            "attention": s.attention or "sdpa",
            "loss": "plain",
            "optimizer": recipe.optimizer,
        },
        facts={"trainable_parameters": count, "peak_allocated": allocated, "process": allocated + CUDA_CONTEXT},
        assumptions=_assumptions(recipe, tape),
        remarks=[paged] if stepper.paged else [],
    )


def _recipe(job: Job) -> Recipe:
    """The scenario with defaults. Raises Unknown for what is not estimated, BadInput for what contradicts itself."""
    s = job.scenario
    job.refuse(*MANY, "compile", "optimizer_in_backward", "reshard_after_forward", "virtual_pipeline", "pipeline_schedule")
    if s.sharding not in (None, "none"):
        raise Unknown(f"sharding {s.sharding!r}: several GPUs are not estimated by this version")
    for key, known in (("loss", ("plain",)), ("checkpointing", ("none", "full")), ("precision", tuple(PRECISIONS))):
        if getattr(s, key) not in (None, *known):
            raise Unknown(f"{key} {getattr(s, key)!r}: estimated for engine 'transformers' are {', '.join(known)}")
    version = s.engine_version or VERSION
    if release(version) < UNSHIFTED:
        raise Unknown(f"engine_version {version!r}: training is estimated for transformers since 4.50")
    precision, own = s.precision or "bf16", job.model.context_length
    if s.attention == "flash" and precision == "fp32":
        raise BadInput("attention 'flash': its kernels take 16-bit types only, precision is fp32; choose bf16, bf16-mixed or sdpa")
    length = s.sequence_length or min(2048, own or 2048)
    if own and length > own:
        raise BadInput(f"sequence_length {length:,}: beyond what {job.model.id} was made for, {own:,} tokens")
    method, checkpointing = _method(job), s.checkpointing == "full"
    return Recipe(
        version=version,
        method=method,
        precision=precision,
        batch=s.micro_batch or 1,
        length=length,
        passes=s.gradient_accumulation or 1,
        checkpointing=checkpointing,
        attention="eager" if s.attention == "eager" else "sdpa",
        optimizer=s.optimizer or "adamw-fused",
        adapters=_adapters(job, method, PRECISIONS[precision][0], checkpointing),
    )


def _tape(job: Job, recipe: Recipe) -> Tape:
    """The forward pass and the loss, on a tape that knows what trains."""
    kernels = Kernels(attention=recipe.attention, logits="all")
    tape = Tape(Dim(recipe.batch, "batch"), Dim(recipe.length, "tokens"), 0, recipe.itemsize, kernels)
    tape.method, tape.autocast = recipe.adapters or Full(), PRECISIONS[recipe.precision][1]
    job.walk(tape)
    if not tape.caches:
        raise Unknown(f"{job.model.id}: only decoders are estimated in training, this model is an encoder")
    if recipe.adapters and any(weight.kind == "experts" for weight in tape.weights):
        raise Unknown(
            f"method {recipe.method!r} of {job.model.id}: adapters over a mixture of experts are not estimated by this version "
            "(PEFT adapts fused experts, bitsandbytes leaves them in 16 bits)"
        )
    if recipe.adapters and not any(weight.part == "adapters" for weight in tape.weights):
        raise BadInput(f"lora.targets {recipe.adapters.targets!r}: no linear layer of {job.model.id} is called so; try all-linear")
    cross_entropy(tape, tape.ops[-1].writes[0])
    return tape


def _method(job: Job) -> str:
    s = job.scenario
    named = s.method or ("qlora" if s.quantization else "lora" if s.lora else "full")
    if named not in ("full", "lora", "qlora"):
        raise Unknown(f"method {named!r}: estimated are full, lora and qlora")
    if named == "full" and (s.quantization or job.model.config.get("quantization_config")):
        raise BadInput("method 'full': quantised weights do not train; choose qlora, or a checkpoint in 16 bits")
    if s.quantization not in (None, *PACKED):
        raise Unknown(f"quantization {s.quantization!r}: estimated in training are {', '.join(PACKED)}")
    return named


def _adapters(job: Job, method: str, itemsize: int, checkpointing: bool) -> Adapters | None:
    if method == "full":
        return None
    lora = job.scenario.lora or {}
    targets = lora.get("targets", "all-linear")
    dtype = lora.get("dtype", "fp32")
    rank, dropout = lora.get("rank", 16), lora.get("dropout", 0.0)
    assert isinstance(rank, int)
    assert isinstance(dropout, int | float)
    assert isinstance(targets, str | tuple)
    return Adapters(
        rank=rank,
        itemsize=4 if dtype == "fp32" else 2,
        dropout=float(dropout),
        targets=targets,
        saved_modules=job.scenario.trained_modules or (),
        packed=itemsize if method == "qlora" else 0,
        checkpointing=checkpointing,
    )


def _weights(job: Job, tape: Tape, recipe: Recipe) -> list[Item]:
    """The base in its number format, adapters in theirs."""
    s = job.scenario
    plain = "fp32" if recipe.itemsize == 4 else recipe.precision
    packed = (s.quantization or "nf4") + ("-double" if s.double_quant else "")
    form = scheme(packed if recipe.adapters and recipe.adapters.packed else plain, dtype=plain)
    base = [weight for weight in tape.weights if weight.part != "adapters"]
    items = [item_of_share(share, TRAINING, job.model.origin) for share in weights_nbytes(base, form)]
    for weight in tape.weights:
        if weight.part == "adapters":
            nbytes = weight.numel * (4 if weight.dtype == "fp32" else 2)
            why = f"{weight.repeats} layers × {shape_label(weight.shape)} × {4 if weight.dtype == 'fp32' else 2} B"
            source = "PEFT 0.21 tuners/lora/layer.py"
            items.append(Item(path=("weights", "adapters", weight.name), nbytes=nbytes, alive=TRAINING, why=why, source=source))
    return items


def _pass_items(swept: Sweep, gradients: int, accumulates: bool) -> list[Item]:
    """Saved activations, transients and gradients at the peaks of forward, loss and backward, and the gradients at the step."""
    source = "the sweep of the tape, as torch's autograd engine runs it"
    items = []
    peaks: dict[Moment, Peak] = {}
    for peak, moment in ((swept.forward, Moment.FORWARD), (swept.backward, Moment.BACKWARD)):
        at = Moment.LOSS if peak.where.startswith("loss.") else moment
        if at not in peaks or peak.nbytes > peaks[at].nbytes:
            peaks[at] = peak
    for moment, peak in peaks.items():
        alive = frozenset({moment})
        why = f"kept for backward, when most is alive: at {peak.where}"
        items.append(Item(path=("saved activations",), nbytes=peak.saved, alive=alive, why=why, source=source))
        items.append(Item(path=("activations", "transient"), nbytes=peak.transient, alive=alive, why=f"at {peak.where}", source=source))
        if not accumulates:
            why = f"of the weights whose backward has run by {peak.where}"
            items.append(Item(path=("gradients",), nbytes=peak.gradients, alive=alive, why=why, source=source))
    alive = TRAINING if accumulates else frozenset({Moment.STEP})
    why = "of all trained weights" + (", kept from one pass to the next" if accumulates else "")
    items.append(Item(path=("gradients",), nbytes=gradients, alive=alive, why=why, source=source))
    return items


def _assumptions(recipe: Recipe, tape: Tape) -> list[str]:
    precision, adapters = recipe.precision, recipe.adapters
    mixed = PRECISIONS[precision][1]
    state = f"fp32 weights under autocast to {precision[:4]}" if mixed else f"pure {precision}: weights, gradients and states"
    lines = [f"transformers {recipe.version} Trainer, a step after the first; {state}"]
    if adapters:
        dtype = "fp32" if adapters.itemsize == 4 else "16-bit"
        targets = adapters.targets if isinstance(adapters.targets, str) else ", ".join(adapters.targets)
        lines.append(f"LoRA of rank {adapters.rank} in {dtype} on {targets}; no k-bit preparation")
    lines.append("no dropout in the model; all sequences as long as the longest; torch's allocator slack not included")
    if any(weight.tower for weight in tape.weights):
        lines.append("text only: towers for other modalities are loaded, frozen and not run")
    return lines
