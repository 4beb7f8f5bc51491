"""One training step of any framework: the tape of its forward pass, swept forward and backward, as line items of the ledger.

Weights, gradients and optimizer states follow from the recipe; what the forward pass saves and what backward makes from the sweep of the
tape. `peak_allocated` is `torch.cuda.max_memory_allocated()`; the order of allocations goes to the allocator's simulation, which says what
`max_memory_reserved()` comes to. `load_peak` is what loading the weights takes at most. What it does not know: several GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

from ...allocator import Event
from ...dim import Dim, shape_label
from ...errors import BadInput, Unknown
from ...formats import Scheme, scheme, weights_nbytes
from ...ledger import Item, Moment, ledger
from ...parallel.context import context_parallel, tokens_of
from ...parallel.expert import spread_experts
from ...parallel.flat import Flat
from ...parallel.sequence import sequence_parallel
from ...parallel.sharded import SOURCE as SHARDED
from ...parallel.sharded import Adds, Sharding, Unit
from ...parallel.zero import Zero
from ...sweep import Peak, Sweep, sweep
from ...tape import Tape
from ...tensors import Weight
from ...timeline import timeline
from ...units import gib
from ..job import Account, Job
from ..lines import item_of_share
from ..process import cublas
from . import deepspeed
from .adapters import check
from .loading import loading
from .objectives.passes import Beside, beside
from .offloaded import all_saved, hosted
from .recipe import Framework, Recipe, read
from .shared import PACKED_BYTES, apart, scales, sharding_of, shared_items, shares_packed
from .stepping import LOADED, TRAINING, Stepping

SWEPT = "the sweep of the tape, as torch's autograd engine runs it"


def account(job: Job, framework: Framework) -> Account:
    """A steady step of `micro_batch` × `sequence_length` tokens."""
    recipe = read(job, framework)
    tape = walked(job, recipe)
    trained = list({id(weight): weight for weight in tape.weights if weight.trained and weight.kind != "buffer"}.values())
    form = form_of(job, recipe)
    sharding = sharding_of(job, recipe, trained, any(weight.tied for weight in tape.weights))
    mine = [sharding.part(w) for w in tape.weights] if sharding else tape.weights
    zero = sharding if isinstance(sharding, Zero) else None
    stepping = Stepping(job, recipe, sharding.stepped(trained) if sharding else trained, norm=zero.norm(trained) if zero else 0)
    gradients = zero.held(trained) if zero and zero.stage < 3 else stepping.gradients
    root = sharding.root(tape.weights) if sharding else Unit()
    passes = _passes(tape, recipe, stepping, sharding, root)
    waits = sharding and recipe.passes > 1 and recipe.sharing.shares and not recipe.sharing.shares.synced
    waiting = sharding.waiting(passes[-1].runs, root) if sharding and waits else 0
    worst = pass_items(passes[-1], gradients, recipe.passes > 1 or stepping.adds, waiting)
    if waiting:
        first = pass_items(passes[0], gradients, False, 0)
        worst = max(worst, first, key=lambda items: ledger(items).peak()[1])
    extra = beside(job, recipe, tape, passes[-1], form)
    items = [
        *_weights(job, mine, recipe, form),
        *loading(tape, recipe),
        *stepping.items(),
        *worst,
        *(deepspeed.items(zero, tape.weights) if zero else shared_items(recipe, root, trained)),
        *scales(tape, recipe, form),
        *workspaces(job),
        *framework.stays(tape, recipe),
        Item(path=("cuda context",), nbytes=framework.context[0], alive=LOADED, why="one process", source=framework.context[1]),
    ]
    items = extra.joined(items)
    items, host = apart(items, recipe.sharing)
    peak = ledger(items).peak()[1]

    def events() -> list[Event]:
        return _events(job, tape, mine, sharding, recipe, form, stepping, passes, extra)

    return Account(
        tape=tape,
        items=items,
        room=job.gpu.usable if job.gpu else None,
        filled=filled_in(recipe) if tape.caches else {**filled_in(recipe), "head": tape.head},
        facts={
            "trainable_parameters": sum(weight.numel for weight in trained),
            "peak_allocated": peak - framework.context[0] - extra.outside,
            "process": peak,
            "first_step": _first_step(items, stepping) - framework.context[0] - extra.outside,
            "load_peak": sum(item.nbytes for item in items if Moment.LOAD in item.alive and item.path[0] in ("weights", "load")),
        },
        events=events if extra.timed and not zero and not tape.offloaded else None,
        outside=framework.context[0] + extra.outside,
        count=recipe.sharing.ranks,
        host=[*host, *hosted(tape, recipe, passes[0])],
        assumptions=_assumptions(recipe, tape),
        remarks=_remarks(stepping, passes),
    )


def walked(job: Job, recipe: Recipe) -> Tape:
    """The forward pass and the loss, on a tape that knows what trains."""
    mixed = recipe.mixed
    tape = Tape(
        Dim(recipe.batch, "batch"),
        Dim(tokens_of(recipe.length, recipe.context), "tokens"),
        0,
        mixed.compute,
        recipe.framework.kernels(recipe),
    )
    tape.method, tape.autocast, tape.fp8 = recipe.trains, mixed.autocast, mixed.fp8 and not recipe.compiled
    tape.head = "mlm" if job.scenario.head == "mlm" else "classification"
    recipe.images.show(tape)
    tape.positions = job.model.context_length or 0
    job.walk(tape)
    recipe.images.check(tape, job)
    if tape.caches and job.scenario.head:
        raise BadInput(f"head {job.scenario.head!r}: {job.model.id} is a decoder, which has its own; leave it out")
    if tape.untold:
        raise Unknown(f"{job.model.id}: {tape.untold} is not estimated in training")
    if not tape.caches and not recipe.framework.encoders:
        raise Unknown(f"{job.model.id}: engine {recipe.framework.name!r} is estimated for decoders only, this model is an encoder")
    check(tape, recipe.trains, job.model.id, str(job.model.config.get("model_type")))
    recipe.framework.losses[recipe.loss](tape, recipe)
    if not any(shares and shares.outside for shares in recipe.framework.shares.values()):
        tape.hold_to_the_end()
    if recipe.offloaded and recipe.checkpointing == "none":
        all_saved(tape, recipe, job)
    return context_parallel(sequence_parallel(spread_experts(tape, recipe.expert), recipe.tensor), recipe.context)


def _passes(tape: Tape, recipe: Recipe, stepping: Stepping, sharding: Sharding | Zero | None, root: Unit) -> list[Sweep]:
    """The first pass of a step, and with accumulation one of those that add to its gradients."""
    kinds = (True,) if stepping.adds else (False, True) if recipe.passes > 1 else (False,)
    each = stepping.temporary_of if stepping.in_backward else None
    checkpointing, shares = recipe.recomputes(), recipe.sharing.shares
    if not sharding or not shares:
        return [
            sweep(tape, gradient_itemsize=recipe.gradient, checkpointing=checkpointing, accumulates=adds, stepping=each) for adds in kinds
        ]
    swept = []
    for added in kinds:
        later: Adds = "parts" if shares.synced else "whole"
        adds: Adds = later if added else "wait" if len(kinds) > 1 and not shares.synced else "parts" if recipe.sharing.hosted else ""
        swept.append(
            sweep(
                tape,
                gradient_itemsize=recipe.computed,
                checkpointing=checkpointing,
                accumulates=sharding.accumulates(adds),
                arrange=partial(sharding.arranged, root=root, adds=adds),
            )
        )
    return swept


def _first_step(items: Iterable[Item], stepping: Stepping) -> int:
    """The peak of the first step: the optimizer's states are made in it, when it comes to the weights, unless they are there before."""
    items = list(items)
    before = frozenset() if stepping.early else frozenset(Moment) - {Moment.LOAD, Moment.STEP}
    return max(
        sum(item.nbytes for item in items if moment in item.alive and not (moment in before and item.path == ("optimizer states",)))
        for moment in Moment
        if moment is not Moment.LOAD
    )


def form_of(job: Job, recipe: Recipe) -> Scheme:
    """The number format of the base's weights."""
    plain = "fp32" if recipe.mixed.weights == 4 else "fp16" if recipe.precision.startswith("fp16") else "bf16"
    base = recipe.adapters.base if recipe.adapters else None
    if base is None:
        return scheme(plain, dtype=plain)
    stacked = "-stacked" if recipe.framework.kernels(recipe).experts == "grouped" else ""
    return scheme(base.format + stacked, dtype=plain)


def _weights(job: Job, weights: Sequence[Weight], recipe: Recipe, form: Scheme) -> list[Item]:
    """The base in its number format, adapters in theirs."""
    base = [weight for weight in weights if weight.part != "adapters"]
    items = []
    for share in weights_nbytes(base, form):
        item = item_of_share(share, LOADED, job.model.origin)
        items.append(replace(item, nbytes=int(share.weight.numel * PACKED_BYTES)) if shares_packed(recipe, share.weight) else item)
    for weight in weights:
        if weight.part == "adapters":
            size = recipe.size(weight)
            why = f"{weight.repeats} layers × {shape_label(weight.shape)} × {size} B"
            source = "PEFT 0.21 tuners/lora/layer.py"
            items.append(
                Item(path=("weights", "adapters", weight.name), nbytes=weight.numel * size, alive=TRAINING, why=why, source=source)
            )
    return items


def pass_items(swept: Sweep, gradients: int, accumulates: bool, waiting: int) -> list[Item]:
    """Saved activations, transients and gradients at the peaks of forward, loss and backward, and the gradients at the step.

    With several GPUs whole gradients may be `waiting` for the last pass, which reduces them.
    """
    items = []
    peaks: dict[Moment, Peak] = {}
    for peak, moment in ((swept.forward, Moment.FORWARD), (swept.backward, Moment.BACKWARD)):
        at = Moment.LOSS if peak.where.startswith("loss.") else moment
        if at not in peaks or peak.nbytes > peaks[at].nbytes:
            peaks[at] = peak
    for moment, peak in peaks.items():
        alive = frozenset({moment})
        why = f"kept for backward, when most is alive: at {peak.where}"
        items.append(Item(path=("saved activations",), nbytes=peak.saved, alive=alive, why=why, source=SWEPT))
        made = peak.transient + (peak.gradients if accumulates else 0)
        items.append(Item(path=("activations", "transient"), nbytes=made, alive=alive, why=f"at {peak.where}", source=SWEPT))
        why = f"whole weights of layers and gradients on their way, at {peak.where}"
        items.append(Item(path=("gathered", "layers"), nbytes=peak.gathered, alive=alive, why=why, source=SHARDED))
        if not accumulates:
            why = f"of the weights whose backward has run by {peak.where}"
            items.append(Item(path=("gradients",), nbytes=peak.gradients, alive=alive, why=why, source=SWEPT))
    if waiting:
        why = "whole ones, kept from one pass to the next: they are reduced in the last (no_sync)"
        items.append(Item(path=("gradients", "whole"), nbytes=waiting, alive=TRAINING - {Moment.STEP}, why=why, source=SHARDED))
    alive = TRAINING if accumulates and not waiting else frozenset({Moment.STEP})
    why = "of all trained weights" + (", kept from one pass to the next" if accumulates and not waiting else "")
    items.append(Item(path=("gradients",), nbytes=gradients, alive=alive, why=why, source=SWEPT))
    return items


def workspaces(job: Job) -> list[Item]:
    """cuBLAS's, one for the thread of the forward pass and one for autograd's."""
    one = cublas(job.gpu, TRAINING)
    return [Item(path=one.path, nbytes=2 * one.nbytes, alive=TRAINING, why="two threads: forward and backward", source=one.source)]


def _events(
    job: Job,
    tape: Tape,
    weights: Sequence[Weight],
    sharding: Sharding | Zero | None,
    recipe: Recipe,
    form: Scheme,
    stepping: Stepping,
    passes: Sequence[Sweep],
    extra: Beside,
) -> list[Event]:
    """What torch's allocator is asked for, in order, in the first two steps, with what an objective has `extra`."""

    def one(weight: Weight) -> int:
        """Bytes in one layer."""
        if weight.part == "adapters":
            return weight.numel * recipe.size(weight) // weight.repeats
        if shares_packed(recipe, weight):
            return int(weight.numel * PACKED_BYTES) // weight.repeats
        return sum(share.nbytes for share in weights_nbytes([weight], form)) // weight.repeats

    hosted = recipe.sharing.hosted
    units = sharding.wrapped(weights, one) if isinstance(sharding, Flat) else ()
    wrapped = [(tensors, 0 if hosted else part) for tensors, part in units]
    lasting = [w for w in weights if not hosted and (w.kind == "buffer" or not isinstance(sharding, Flat))]
    resident = [b for w in lasting for b in [one(w)] * w.repeats * (1 if w.part == "adapters" else 1 + extra.copies) if b]
    stays = [item.nbytes for item in recipe.framework.stays(tape, recipe) if item.alive >= TRAINING]
    resident += [*stepping.resident(), *stays, *(item.nbytes for item in scales(tape, recipe, form))]
    states, step = ((), ()) if hosted else (stepping.states(), stepping.step()[1])
    workspace = sum(item.nbytes for item in workspaces(job)) // 2
    spaces = workspace, workspace
    return timeline(resident, passes, states=states, step=step, between=extra.between, workspaces=spaces, wrapped=wrapped)


def filled_in(recipe: Recipe) -> dict[str, object]:
    return {
        "engine_version": recipe.version,
        "method": recipe.method,
        "precision": recipe.precision,
        "micro_batch": recipe.batch,
        "sequence_length": recipe.length,
        "gradient_accumulation": recipe.passes,
        "checkpointing": recipe.checkpointing,
        "attention": recipe.attention,
        "loss": recipe.loss,
        "optimizer": recipe.optimizer,
        **(recipe.goal.filled if recipe.goal else {}),
    }


def _assumptions(recipe: Recipe, tape: Tape) -> list[str]:
    adapters = recipe.adapters
    lines = [f"{recipe.framework.name} {recipe.version}, a step after the first; {recipe.mixed.about}"]
    if adapters:
        lines += adapters.assumptions(tape.weights)
    lines += recipe.framework.assumes(recipe)
    lines += recipe.sharing.assumptions(packed=bool(adapters and adapters.base), context=recipe.context)
    if tape.kernels.recurrence == "composed" and any(cache.side == "state" for cache in tape.caches):
        lines.append("delta rules and scans by torch's own operators: flash-linear-attention and mamba-ssm are not installed")
    if tape.offloaded:
        lines.append("activations go to host memory by TRL 1.16's activation_offloading; what torch reserves then is not told")
    lines.append("all sequences as long as the longest")
    return lines + recipe.images.said(tape)


def _remarks(stepping: Stepping, passes: Sequence[Sweep]) -> list[str]:
    remarks = stepping.remarks()
    if passes[0].offloaded:
        remarks.append(f"{gib(passes[0].offloaded)} of layers' inputs lie in host memory from forward to backward")
    return remarks
