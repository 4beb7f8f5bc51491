"""Offloading of activations: checkpointed layers' inputs, or without checkpointing all that is saved, as TRL has it for transformers.

torchtune and Unsloth offload with checkpointing only (torchtune 0.6.1 `recipes/full_finetune_single_device.py`). What of TRL's is not
known: other losses and objectives than its plain one, several GPUs, images, Liger's kernels, mixtures of experts, recurrent states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...errors import BadInput, Unknown
from ...ledger import Item, Moment
from ...offloading import offload
from ...sweep import Sweep
from ...tape import Tape
from ..job import Job

if TYPE_CHECKING:
    from .recipe import Framework, Recipe

METHODS = ("full", "lora", "rslora", "qlora")
"""Whose saved tensors TRL's class was traced with."""


def asked(job: Job, framework: Framework, checkpointing: str) -> bool:
    """Whether activations go to the host."""
    wanted = "activations" in (job.scenario.offload or ())
    if wanted and checkpointing == "none" and not framework.objectives:
        raise BadInput("offload 'activations': what is offloaded are the inputs of checkpointed layers; add checkpointing full")
    return wanted or (framework.offloads and checkpointing == "full")


def all_saved(tape: Tape, recipe: Recipe, job: Job) -> None:
    """Send all that the tape's ops save to the host. Raises Unknown for what TRL's class was not traced with."""
    s = job.scenario
    fixed = {
        f"objective {s.objective!r}": recipe.goal is not None,
        f"loss {recipe.loss!r}": recipe.loss != "plain",
        f"kernels {s.kernels!r}": s.kernels == "liger",
        f"quantization {s.quantization!r}": s.quantization == "int8",
        f"method {recipe.method!r}": recipe.method not in METHODS,
        f"precision {recipe.precision!r}": recipe.mixed.fp8,
        "images": bool(recipe.images.each),
        f"gpu_count {recipe.sharing.ranks}": recipe.sharing.ranks > 1,
        "an encoder": not tape.caches,
        "a mixture of experts": any(weight.kind == "experts" for weight in tape.weights),
        "a recurrent state": any(cache.side == "state" for cache in tape.caches),
    }
    if found := next((what for what, there in fixed.items() if there), None):
        raise Unknown(f"offload 'activations' without checkpointing, with {found}: not estimated; add checkpointing full")
    offload(tape)


def hosted(tape: Tape, recipe: Recipe, swept: Sweep) -> Sequence[Item]:
    """What lies in the host memory of all ranks from forward to backward."""
    nbytes = (tape.offloaded or swept.offloaded) * recipe.sharing.ranks
    what = "all that is saved for backward, also what stays on the GPU" if tape.offloaded else "inputs of checkpointed layers"
    source = "TRL 1.16 trl/models/activation_offloading.py" if tape.offloaded else "the sweep of the tape"
    alive = frozenset({Moment.FORWARD, Moment.LOSS, Moment.BACKWARD})
    return [Item(path=("saved activations",), nbytes=nbytes, alive=alive, why=what, source=source)] if nbytes else []
