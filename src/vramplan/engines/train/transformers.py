"""transformers' Trainer (with PEFT, bitsandbytes and Accelerate): its defaults, kernels and losses.

What earlier releases did is in `transformers_versions.py`. Dropout is that of the model's config, as in `model.train()`. Several
GPUs share with DDP, with FSDP2 as Accelerate 1.15 wraps a model (`utils/fsdp_utils.py` fsdp2_prepare_model), before 5.10 with FSDP1,
or with DeepSpeed's ZeRO (`deepspeed.py`). What it does not know: offloading of weights and states under ZeRO.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

from ...errors import BadInput, Unknown
from ...kernels import Kernels
from ...ledger import Item, Moment
from ...methods import ADAPTERS
from ...ops import fused_loss
from ...ops.loss import cross_entropy
from ...tape import Tape
from ..job import Account, Job
from . import liger
from .recipe import Framework, Recipe
from .sharing import Shares
from .step import account as step_account
from .transformers_versions import behaviour

NAMES = ("transformers",)
ABOUT = "full, LoRA and QLoRA, on several GPUs with DDP, FSDP, HSDP or ZeRO; pure and autocast precision; checkpointing; not: TP, PP"
VERSION = "5.23"


def account(job: Job) -> Account:
    """A steady step of the Trainer, of the release that the scenario names. Raises Unknown for those that are not described."""
    s = job.scenario
    kind = str(job.model.config.get("model_type"))
    did = behaviour(s.engine_version or VERSION, kind)
    if s.attention == "sdpa" and not did.sdpa:
        raise BadInput(f"attention 'sdpa': transformers {s.engine_version or VERSION} has it not for {job.model.id}; choose eager")

    def kernels(recipe: Recipe) -> Kernels:
        softmax: Literal["copied", "fused"] = "fused" if recipe.precision.startswith("fp16") else "copied"
        own = Kernels(
            attention=recipe.attention,
            logits=did.logits,
            kv=did.kv,
            layout=did.layout,
            softmax=softmax,
            softmax_keeps=did.softmax_keeps,
            padding_mask=did.padding_mask,
            rotary=did.rotary,
            experts=did.experts,
        )
        return liger.kernels(kind, own) if s.kernels == "liger" else own

    def plain(tape: Tape, recipe: Recipe) -> None:
        """An encoder's labels are not shifted; a classifier's logits stay as they are. What the model's forward names lives to its end."""
        encoder, classifies = not tape.caches, not tape.caches and tape.head == "classification"
        loss = replace(did.loss, shifts_logits=False, upcast=did.loss.upcast and not classifies) if encoder else did.loss
        logits = tape.ops[-1].writes[0]
        logits.storage.held = s.loop == "plain"
        with tape.module("", *tape.frames[0]):
            cross_entropy(tape, logits, loss)

    def without_logits(tape: Tape, recipe: Recipe) -> None:
        if not tape.caches:
            raise Unknown(f"loss {recipe.loss!r}: is for decoders, {job.model.id} is an encoder; choose plain")
        if recipe.loss == "fused":
            liger.known(kind)
        WITHOUT_LOGITS[recipe.loss][0](tape)

    trainer = replace(
        TRAINER,
        kernels=kernels,
        losses={"plain": plain, **dict.fromkeys(WITHOUT_LOGITS, without_logits)},
        loss="fused" if s.kernels == "liger" else "plain",
        attention="sdpa" if did.sdpa else "eager",
        optimizer=did.optimizer,
        optimizers=did.optimizers,
        zeroes_gradients=did.zeroes,
        context=did.context or TRAINER.context,
        shares=_shares(s.fsdp_version or did.fsdp),
    )
    return step_account(job, trainer)


def _assumes(recipe: Recipe) -> list[str]:
    """Of the loss, and of a quantised base.

    TRL called prepare_model_for_kbit_training until 0.26 (its PR #4577), PEFT's documentation still does.
    """
    base = recipe.adapters.base if recipe.adapters else None
    lines = [f"loss {recipe.loss}: {WITHOUT_LOGITS[recipe.loss][1]}"] if recipe.loss in WITHOUT_LOGITS else []
    if base is None and recipe.method == "qlora":
        lines.append("nothing is packed: the model's linear layers are a class of their own, which transformers passes over since 5.6")
    if base is None or recipe.prepared:
        return lines
    return [*lines, "without prepare_model_for_kbit_training, as TRL since 0.26; PEFT's own recipe has it: kbit_preparation"]


def _shares(version: int) -> Mapping[str, Shares | None]:
    """How several GPUs share a model with a version of FSDP."""
    if version == 2:
        return TRAINER.shares
    return {kind: FSDP1 if kind == "fsdp" else shares for kind, shares in TRAINER.shares.items() if kind != "hsdp"}


def _held(tape: Tape, recipe: Recipe) -> list[Item]:
    """The logits that a user's own loop holds: when the optimizer steps, and in the passes of a step that come after."""
    alive = frozenset({Moment.STEP, *([Moment.FORWARD] if recipe.passes > 1 else [])})
    why, source = "a variable of the loop, `output = model(…)`, until the next step", "the caller's own loop (loop: plain)"
    path = "activations", "logits held"
    return [Item(path=path, nbytes=t.nbytes, alive=alive, why=why, source=source) for t in tape.tensors if t.held]


WITHOUT_LOGITS: Mapping[str, tuple[Callable[[Tape], object], str]] = {
    "fused": (fused_loss.liger, f"Liger Kernel {liger.VERSION}"),
    "chunked": (fused_loss.trl, "that of TRL 1.16's SFTTrainer, its default"),
    "cut": (fused_loss.cut, "cut-cross-entropy 25.1.1"),
}
"""Losses that make no logits, and whose they are: transformers' own is the plain one."""

FSDP1 = Shares(named="FSDP1", flat=True, leaves=True, autocast=True, reduced=2)
"""As Accelerate 1.15 wraps (`accelerator.py` prepare_model), without prefetching; PEFT's policy makes what trains units of their own."""

TRAINER = Framework(
    name="transformers",
    version=VERSION,
    kernels=lambda _: Kernels(),
    losses={},
    encoders=True,
    objectives=True,
    kernel_sets=("native", "liger"),
    wide_embeddings=True,
    clips=True,
    loops=True,
    stays=_held,
    shares={
        "ddp": None,
        "fsdp": Shares(apart=True, autocast=True, reduced=2),
        "hsdp": Shares(apart=True, autocast=True, reduced=2),
        "zero1": Shares(named="ZeRO-1", stage=1),
        "zero2": Shares(named="ZeRO-2", stage=2, synced=True),
        "zero3": Shares(named="ZeRO-3", stage=3, synced=True),
    },
    methods=("full", *ADAPTERS),
    packed=("nf4", "fp4", "int8"),
    assumes=_assumes,
)
