"""What each GPU and the host hold where `device_map` spreads a model: layers with their caches, and the host's weights in their turn.

Modules that are left on the host run on the first GPU, which has their caches too; each of their leaf modules is brought there for as long
as it runs. The logits come back to the first GPU. Source: accelerate 1.15 `big_modeling.py` dispatch_model, `hooks.py` AlignDevicesHook.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from ..errors import BadInput, Unknown
from ..formats import weights_nbytes
from ..ledger import Item, Moment
from ..parallel import part_of
from ..tape import Tape
from .job import Account, Device, Job
from .lines import counted, item_of_share
from .process import CUDA_CONTEXT
from .transformers_cache import Generation
from .transformers_devices import BITSANDBYTES, DISK, HOST, Place, device_map, limits, modules, place_of
from .transformers_generate import LOADED, Passes, context, device_items
from .transformers_loading import Loading

ENOUGH = 1 << 50
"""Host memory where the scenario names none."""


def split(job: Job, run: Generation, loads: Loading, whole: Passes, answer: Account) -> None:
    """Fill in `answer` what the GPUs and the host hold, the GPU that has least to spare first.

    Raises BadInput as transformers would, and Unknown for what the map is not described for.
    """
    s, tape = job.scenario, whole.prefill
    if job.gpu is None:
        raise BadInput("device_map: transformers asks how much memory is free: name a gpu, or its gpu_memory")
    if any(weight.tower for weight in tape.weights) or job.stored:
        raise Unknown("device_map: estimated for text models from their config; name one by its id or config.json")
    kind, count = s.device_map or "auto", s.gpu_count or 1
    tree = modules(tape, loads.scheme)
    usable = [gpu.usable for rank in range(count) if (gpu := job.gpu_at(rank))]
    free = [room - CUDA_CONTEXT for room in usable]
    places = device_map(tree, limits(kind, tree, free, s.host_memory or ENOUGH, loads.scheme))
    away = {place for place in places.values() if place in (HOST, DISK)}
    if away and loads.scheme.name.lower().split("-")[0] in BITSANDBYTES:
        raise BadInput(
            f"weights {s.weights or 'of bitsandbytes'!r}: some modules would go to the CPU or the disk, which transformers refuses"
            " for quantised ones; it needs more GPU memory (gpu_count, gpu_memory)"
        )
    where = _Where(tape, places)
    items = [_on(gpu, job, run, loads, whole, where) for gpu in where.gpus]
    spare = [usable[rank] - max(_sums(lines)) for rank, lines in zip(where.gpus, items, strict=True)]
    worst = spare.index(min(spare))
    answer.rank, answer.items, answer.room = where.gpus[worst], items[worst][:-1], usable[where.gpus[worst]]
    answer.others = [
        Device(rank=rank, gpu=job.gpu_at(rank), room=usable[rank], items=lines)
        for rank, lines in zip(where.gpus, items, strict=True)
        if rank != answer.rank
    ]
    answer.host = [item_of_share(share, LOADED, job.model.origin) for share in weights_nbytes(where.part(tape, HOST).weights, loads.scheme)]
    answer.filled = {**answer.filled, "device_map": kind, "gpu_count": count}
    answer.assumptions.append(_said(where, kind, count, s.host_memory))


class _Where:
    """Which layers, and which weights outside of them, are on each place."""

    def __init__(self, tape: Tape, places: Mapping[str, Place]) -> None:
        self.layers: dict[Place, set[int]] = {}
        self.outside: dict[str, Place] = {}
        for name in {weight.name.partition(".{i}")[0] for weight in tape.weights if weight.layers is not None}:
            layers = {layer for weight in tape.weights if weight.name.startswith(f"{name}.{{i}}") for layer in weight.layers or ()}
            for layer in layers:
                self.layers.setdefault(place_of(places, f"{name}.{layer}"), set()).add(layer)
        for weight in tape.weights:
            if weight.layers is None:
                self.outside[weight.name] = place_of(places, weight.name)
        self.head = next((self.outside[w.name] for w in reversed(tape.weights) if w.kind == "head" or w.tied), 0)
        used = {*self.layers, *self.outside.values()}
        self.gpus = sorted({0} | {place for place in used if isinstance(place, int)})

    def part(self, tape: Tape, place: Place, also: AbstractSet[int] = frozenset()) -> Tape:
        """The weights on `place`, and the caches of its layers and `also` of others."""
        own = self.layers.get(place, set())
        return part_of(tape, own, lambda weight: self.outside[weight.name] == place, own | also)

    @property
    def brought(self) -> set[int]:
        """The layers that are on no GPU."""
        return self.layers.get(HOST, set()) | self.layers.get(DISK, set())


def _on(gpu: int, job: Job, run: Generation, loads: Loading, whole: Passes, where: _Where) -> list[Item]:
    """The lines of one GPU, the CUDA context last."""
    also = where.brought if gpu == 0 else frozenset()
    first = gpu == 0
    at = Passes(
        prefill=where.part(whole.prefill, gpu, also),
        decode=where.part(whole.decode, gpu, also),
        head=where.head == gpu or (first and where.head in (HOST, DISK)),
        chooses=first,
    )
    items = device_items(job, run, loads, at)
    if first and (where.brought or where.head in (HOST, DISK)):
        items += _turn(job, run, loads, where, whole.prefill, items)
    return [*items, context()]


def _turn(job: Job, run: Generation, loads: Loading, where: _Where, tape: Tape, items: list[Item]) -> list[Item]:
    """The largest leaf module of what is on the host or the disk: a linear layer, all experts of a layer, an embedding, the head.

    What is outside the layers has its turn when the prompt's layers are done, with the logits.
    """
    sizes: dict[str, int] = {}
    for place in (HOST, DISK):
        for weight, _, layers, nbytes in weights_nbytes(where.part(tape, place).weights, loads.scheme):
            name = weight.name.partition(".{e}")[0] if "{e}" in weight.name else weight.name.rpartition(".")[0]
            sizes[name] = sizes.get(name, 0) + nbytes // len(layers or (0,))
    inner = max((nbytes for name, nbytes in sizes.items() if "{i}" in name), default=0)
    outer = max((nbytes for name, nbytes in sizes.items() if "{i}" not in name), default=0)
    logits = run.rows * int(tape.ops[-1].writes[0].shape[-1]) * (4 + job.itemsize)
    made = sum(item.nbytes for item in items if item.path == ("activations", Moment.PREFILL.value))
    turns = {Moment.PREFILL: max(inner, outer + logits - made), Moment.DECODE: max(inner, outer)}
    path, why = ("offloaded weights", "on the GPU in turn"), "the largest of the modules that are brought there, as long as it runs"
    return [Item(path=path, nbytes=n, alive=frozenset({moment}), why=why, source="accelerate hooks.py") for moment, n in turns.items()]


def _sums(items: list[Item]) -> list[int]:
    return [sum(item.nbytes for item in items if moment in item.alive) for moment in LOADED]


def _said(where: _Where, kind: str, count: int, host_memory: int | None) -> str:
    """Which layers are where, in words."""
    parts = [f"GPU {gpu} {counted(len(where.layers.get(gpu, ())), 'layer')}" for gpu in where.gpus]
    parts += [f"{place} {counted(len(where.layers[place]), 'layer')}" for place in (HOST, DISK) if place in where.layers]
    unknown = "" if host_memory or not (where.brought) else "; host memory taken to be enough"
    return f"device_map {kind!r} over {counted(count, 'GPU')}: {', '.join(parts)}{unknown}"
