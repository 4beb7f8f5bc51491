"""One training step of any framework: the tape of its forward pass, swept forward and backward, as line items of the ledger.

Weights, gradients and optimizer states follow from the recipe; what the forward pass saves and what backward makes from the sweep of the
tape. `peak_allocated` is `torch.cuda.max_memory_allocated()`; the order of allocations goes to the allocator's simulation, which says what
`max_memory_reserved()` comes to. `load_peak` is what loading the weights takes at most. What it does not know: several GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...allocator import Event
from ...dim import Dim, shape_label
from ...errors import BadInput, Unknown
from ...formats import Scheme, scheme, weights_nbytes
from ...ledger import Item, Moment, ledger
from ...sweep import Peak, Sweep, sweep
from ...tape import Tape, Weight
from ...timeline import timeline
from ...units import gib
from ..job import Account, Job
from ..lines import item_of_share
from ..transformers import cublas
from .adapters import check
from .loading import loading
from .objectives.passes import Beside, beside
from .recipe import Framework, Recipe, read
from .stepping import TRAINING, Stepping

LOADED = TRAINING | {Moment.LOAD}
SWEPT = "the sweep of the tape, as torch's autograd engine runs it"


def account(job: Job, framework: Framework) -> Account:
    """A steady step of `micro_batch` × `sequence_length` tokens."""
    recipe = read(job, framework)
    tape = _tape(job, recipe)
    trained = list({id(weight): weight for weight in tape.weights if weight.trained and weight.kind != "buffer"}.values())
    stepping, form = Stepping(job, recipe, trained), _form(job, recipe)
    passes = _passes(tape, recipe, stepping)
    extra = beside(job, recipe, tape, passes[-1], form)
    items = [
        *_weights(job, tape, recipe, form),
        *loading(tape, recipe),
        *stepping.items(),
        *_pass_items(passes[-1], stepping.gradients, recipe.passes > 1 or stepping.adds),
        *_workspaces(job),
        *framework.stays(tape, recipe),
        Item(path=("cuda context",), nbytes=framework.context[0], alive=LOADED, why="one process", source=framework.context[1]),
    ]
    items = extra.joined(items)
    peak = ledger(items).peak()[1]

    def events() -> list[Event]:
        return _events(job, tape, recipe, form, stepping, passes, extra)

    return Account(
        tape=tape,
        items=items,
        room=job.gpu.usable if job.gpu else None,
        filled=_filled(recipe) if tape.caches else {**_filled(recipe), "head": tape.head},
        facts={
            "trainable_parameters": stepping.count,
            "peak_allocated": peak - framework.context[0] - extra.outside,
            "process": peak,
            "first_step": _first_step(items, stepping) - framework.context[0] - extra.outside,
            "load_peak": sum(item.nbytes for item in items if Moment.LOAD in item.alive and item.path[0] == "weights"),
        },
        events=events if extra.timed else None,
        outside=framework.context[0] + extra.outside,
        assumptions=_assumptions(recipe, tape),
        remarks=_remarks(stepping, passes),
    )


def _tape(job: Job, recipe: Recipe) -> Tape:
    """The forward pass and the loss, on a tape that knows what trains."""
    mixed = recipe.mixed
    tape = Tape(Dim(recipe.batch, "batch"), Dim(recipe.length, "tokens"), 0, mixed.compute, recipe.framework.kernels(recipe))
    tape.method, tape.autocast, tape.fp8 = recipe.trains, mixed.autocast, mixed.fp8
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
    return tape


def _passes(tape: Tape, recipe: Recipe, stepping: Stepping) -> list[Sweep]:
    """The first pass of a step, and with accumulation one of those that add to its gradients."""
    kinds = (True,) if stepping.adds else (False, True) if recipe.passes > 1 else (False,)
    each = stepping.temporary_of if stepping.in_backward else None
    checkpointing = recipe.recomputes()
    return [sweep(tape, gradient_itemsize=recipe.gradient, checkpointing=checkpointing, accumulates=adds, stepping=each) for adds in kinds]


def _first_step(items: Iterable[Item], stepping: Stepping) -> int:
    """The peak of the first step: the optimizer's states are made in it, when it comes to the weights, unless they are there before."""
    items = list(items)
    before = frozenset() if stepping.early else frozenset(Moment) - {Moment.LOAD, Moment.STEP}
    return max(
        sum(item.nbytes for item in items if moment in item.alive and not (moment in before and item.path == ("optimizer states",)))
        for moment in Moment
        if moment is not Moment.LOAD
    )


def _form(job: Job, recipe: Recipe) -> Scheme:
    """The number format of the base's weights."""
    plain = "fp32" if recipe.mixed.weights == 4 else "fp16" if recipe.precision.startswith("fp16") else "bf16"
    base = recipe.adapters.base if recipe.adapters else None
    if base is None:
        return scheme(plain, dtype=plain)
    stacked = "-stacked" if recipe.framework.kernels(recipe).experts == "grouped" else ""
    return scheme(base.format + stacked, dtype=plain)


def _weights(job: Job, tape: Tape, recipe: Recipe, form: Scheme) -> list[Item]:
    """The base in its number format, adapters in theirs."""
    base = [weight for weight in tape.weights if weight.part != "adapters"]
    items = [item_of_share(share, LOADED, job.model.origin) for share in weights_nbytes(base, form)]
    for weight in tape.weights:
        if weight.part == "adapters":
            size = recipe.size(weight)
            why = f"{weight.repeats} layers × {shape_label(weight.shape)} × {size} B"
            source = "PEFT 0.21 tuners/lora/layer.py"
            items.append(
                Item(path=("weights", "adapters", weight.name), nbytes=weight.numel * size, alive=TRAINING, why=why, source=source)
            )
    return items


def _pass_items(swept: Sweep, gradients: int, accumulates: bool) -> list[Item]:
    """Saved activations, transients and gradients at the peaks of forward, loss and backward, and the gradients at the step."""
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
        if not accumulates:
            why = f"of the weights whose backward has run by {peak.where}"
            items.append(Item(path=("gradients",), nbytes=peak.gradients, alive=alive, why=why, source=SWEPT))
    alive = TRAINING if accumulates else frozenset({Moment.STEP})
    why = "of all trained weights" + (", kept from one pass to the next" if accumulates else "")
    items.append(Item(path=("gradients",), nbytes=gradients, alive=alive, why=why, source=SWEPT))
    return items


def _workspaces(job: Job) -> list[Item]:
    """cuBLAS's, one for the thread of the forward pass and one for autograd's."""
    one = cublas(job.gpu, TRAINING)
    return [Item(path=one.path, nbytes=2 * one.nbytes, alive=TRAINING, why="two threads: forward and backward", source=one.source)]


def _events(job: Job, tape: Tape, recipe: Recipe, form: Scheme, stepping: Stepping, passes: Sequence[Sweep], extra: Beside) -> list[Event]:
    """What torch's allocator is asked for, in order, in the first two steps, with what an objective has `extra`."""

    def each(weight: Weight, nbytes: int) -> Iterable[int]:
        return [nbytes // weight.repeats] * weight.repeats if nbytes else []

    resident: list[int] = []
    for weight in tape.weights:
        if weight.part == "adapters":
            resident += each(weight, weight.numel * recipe.size(weight))
        else:
            resident += [block for share in weights_nbytes([weight], form) for block in each(weight, share.nbytes)] * (1 + extra.copies)
    workspaces = [item.nbytes // 2 for item in _workspaces(job)] * 2
    stays = [item.nbytes for item in recipe.framework.stays(tape, recipe) if item.alive >= TRAINING]
    resident += [*stepping.resident(), *workspaces, *stays]
    return timeline(resident, passes, states=stepping.states(), step=stepping.step()[1], between=extra.between)


def _filled(recipe: Recipe) -> dict[str, object]:
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
    lines.append("all sequences as long as the longest")
    return lines + recipe.images.said(tape)


def _remarks(stepping: Stepping, passes: Sequence[Sweep]) -> list[str]:
    remarks = stepping.remarks()
    if passes[0].offloaded:
        remarks.append(f"{gib(passes[0].offloaded)} of layers' inputs lie in host memory from forward to backward")
    return remarks
