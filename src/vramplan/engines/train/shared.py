"""What several GPUs share of a model that is trained: how its weights are gathered, as line items, and what lies in host memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...errors import BadInput, Unknown
from ...formats import Scheme, weights_nbytes
from ...ledger import Item, Moment
from ...parallel.sharded import SOURCE as SHARDED
from ...parallel.sharded import Sharding, Unit
from ...parallel.sharded_experts import with_experts
from ...parallel.zero import Zero
from ...tape import Tape
from ...tensors import Weight
from ..job import Job
from . import deepspeed
from .recipe import Recipe
from .sharing import DDP, Sharing
from .stepping import LOADED, TRAINING

PACKED_BYTES = 0.5
"""Of an element of a 4-bit weight, which FSDP gathers as it is packed; scales are whole on every rank."""
HOSTED = ("weights", "gradients", "optimizer states", "optimizer step")
STAYS = (("scales",), ("rotary tables",), ("embedding replaced",))
"""What FSDP's CPU offload has in host memory, and what stays on the GPU though it is listed with the weights."""


def sharding_of(job: Job, recipe: Recipe, trained: Sequence[Weight], tied: bool) -> Sharding | Zero | None:
    """How several GPUs share the weights, where they do. FSDP wants all that train to have one dtype."""
    if not recipe.sharing.shares:
        return None
    if recipe.sharing.stage:
        return deepspeed.zero(job, recipe.sharing)
    if recipe.adapters and recipe.adapters.base and recipe.adapters.base.eight:
        raise Unknown("quantization 'int8' with sharding 'fsdp': bitsandbytes' int8 weights are not shared out; choose nf4 or ddp")
    sizes = {(recipe.computed(weight), recipe.gradient(weight)) for weight in trained}
    if len(sizes) > 1:
        raise BadInput("sharding 'fsdp' with weights of several dtypes that train: it wants one; choose another precision or lora.dtype")
    computed, gradient = sizes.pop()

    def gathered(weight: Weight) -> float:
        if recipe.adapters and recipe.adapters.packed(weight):
            return PACKED_BYTES
        return computed if computed != gradient else recipe.size(weight)

    sharding = recipe.sharing.sharding(gathered, computed=computed, gradient=gradient, tied=tied, adapters=bool(recipe.adapters))
    return with_experts(sharding, recipe.expert) if sharding and recipe.expert > 1 else sharding


def shared_items(recipe: Recipe, root: Unit, trained: Sequence[Weight]) -> list[Item]:
    """What several GPUs have beside their own: the whole root of FSDP, DDP's buckets."""
    if recipe.sharing.shares:
        why, alive = "outside the layers: whole from the first op to the end of the backward pass", TRAINING - {Moment.STEP}
        return [Item(path=("gathered", "root"), nbytes=root.whole, alive=alive, why=why, source=SHARDED)]
    if recipe.sharing.copies == 1 or not recipe.sharing.buckets:
        return []
    nbytes = sum(weight.numel * recipe.gradient(weight) for weight in trained)
    why = "a second place for every gradient, from which it is reduced (gradient_as_bucket_view is off by default)"
    return [Item(path=("gradients", "buckets"), nbytes=nbytes, alive=TRAINING, why=why, source=DDP)]


def scales(tape: Tape, recipe: Recipe, form: Scheme) -> list[Item]:
    """Of packed weights that several GPUs share, each has all the scales: they are no parameters (bitsandbytes' quant_state)."""
    packed = [weight for weight in tape.weights if shares_packed(recipe, weight)]
    nbytes = sum(share.nbytes for share in weights_nbytes(packed, form)) - int(sum(weight.numel for weight in packed) * PACKED_BYTES)
    return [Item(path=("weights", "scales"), nbytes=nbytes, alive=LOADED, why="whole on every rank", source=SHARDED)] if packed else []


def shares_packed(recipe: Recipe, weight: Weight) -> bool:
    """Whether several GPUs share the packed form of a weight."""
    return bool(
        recipe.sharing.shares
        and not recipe.sharing.stage
        and recipe.adapters
        and weight.part != "adapters"
        and recipe.adapters.packed(weight)
    )


def apart(items: Sequence[Item], sharing: Sharing) -> tuple[list[Item], list[Item]]:
    """What is on the GPU, and what all ranks together have in host memory: there the optimizer steps."""
    if not sharing.hosted:
        return list(items), []
    there = [item for item in items if item.path[0] in HOSTED and item.path[1:] not in STAYS and Moment.STEP in item.alive]
    here = [item for item in items if item not in there]
    return here, [replace(item, nbytes=item.nbytes * sharing.ranks) for item in there]
