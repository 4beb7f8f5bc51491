"""llama.cpp: tensors by device, a cache of all slots, and on each device the compute buffer of its worst graph.

What the flags come to is llama_cpp_setup.py's; where a tensor is, llama_cpp_placement.py's and llama_cpp_weights.py's; what the cache
holds, llama_cpp_cache.py's; the compute buffers' graph, llama_cpp_pass.py's, and how ggml places it, llama_cpp_schedule.py's. Judged by
llama.cpp's own planner (data/llama_cpp). What it does not know: the backend's own pools, -sm row and tensor,
projectors' buffers, MTP drafts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from ..catalog.gpus import Gpu
from ..errors import BadInput, Unknown
from ..formats import weights_nbytes
from ..ledger import Item
from ..scenario import Scenario
from ..units import GiB
from .job import Account, Device, Job
from .lines import SERVING, cache_items, item_of_share
from .llama_cpp_advice import advice
from .llama_cpp_cache import some_layers
from .llama_cpp_compute import compute_buffers
from .llama_cpp_programs import contexts, program_remarks
from .llama_cpp_setup import Setup, drafting, prepare
from .llama_cpp_weights import names_of, weight_lines
from .process import CUDA_CONTEXT

NAMES = ("llama.cpp",)
ABOUT = (
    "GPUs and host with -ngl, -ts, -ot, --n-cpu-moe; KV by type, slots, windows, states; compute buffers; drafts, projectors' weights; "
    "also for ollama and koboldcpp with their own defaults, and LM Studio; not: -sm row and tensor, projectors' buffers, a backend's pools"
)
VERSION = "0.5.0"
UNEQUAL = True


def account(job: Job) -> Account:
    """What `llama-server` takes of each GPU and of the host; without a GPU in the scenario, of one that holds all tensors of the file."""
    s = job.scenario
    setup = prepare(job)
    draft = drafting(setup)
    gpus = setup.placed.gpus
    devices = [device_items(setup, draft, i) for i in range(gpus)]
    below = shared_items(setup, draft, gpus)
    rooms = [room_on(job.gpu_at(i), below) for i in range(gpus)] or [room_on(job.gpu, below)]
    over = [sum(item.nbytes for item in items) - (room or 0) for items, room in zip(devices, rooms, strict=False)]
    worst = max(range(gpus), key=lambda i: over[i], default=0)
    items = devices[worst] if devices else below
    others = [Device(rank=i, gpu=job.gpu_at(i), room=rooms[i], items=found) for i, found in enumerate(devices) if i != worst]
    return Account(
        tape=setup.tape,
        items=[*items, *(whole_file(setup) if job.gpu is None and gpus else [])],
        room=rooms[worst],
        rank=worst,
        others=others,
        host=below if job.gpu is not None else [],
        filled={
            "engine_version": s.engine_version or VERSION,
            "sequences": setup.held.sequences,
            "context_length": setup.context // contexts(s),
            "ubatch": setup.held.ubatch,
            "flash_attention": setup.flash,
        },
        facts={
            "compute_buffer": sum(item.nbytes for item in items if item.path[0] == "compute buffer"),
            "kv_tokens": setup.held.cells * setup.held.streams,
            "process": sum(item.nbytes for item in items),
        },
        assumptions=assumptions(setup),
        remarks=[*program_remarks(s), *unmatched(setup), *remarks(setup, job.gpu_at(worst), rooms[worst])],
        advice=lambda: would_fit(setup) if job.gpu is not None and max(over, default=0) > 0 else [],
    )


def remarks(setup: Setup, gpu: Gpu | None, room: int | None) -> list[str]:
    """What llama.cpp warns of, what is not counted, and where the processor leaves the fullest GPU less `room` than it could take."""
    own = setup.model.context_length
    found = []
    if own and setup.job.scenario.context_length and setup.held.cells > own:
        found.append(f"-c {setup.context:,} is beyond the model's own {own:,} tokens: llama.cpp warns, and takes the memory")
    if setup.job.scenario.mmproj:
        found.append("the projector's own compute buffer, which grows with the image, is not counted")
    if gpu is not None and room is not None and room < gpu.usable:
        found.append(f"processor and GPU share {gpu.capacity / GiB:.0f} GiB: what is in host memory leaves {room / GiB:.2f} GiB")
    return found


def room_on(gpu: Gpu | None, host: Sequence[Item]) -> int | None:
    """Bytes that a GPU has for llama.cpp: of memory that it shares with the processor, no more than what is on the `host` leaves.

    On Apple GPUs `usable` is recommendedMaxWorkingSetSize, which the Metal backend reports as the device's memory
    (`ggml/src/ggml-metal/ggml-metal-device.m`, ggml_metal_device_get_memory).
    """
    if gpu is None:
        return None
    left = gpu.capacity - sum(item.nbytes for item in host)
    return max(min(gpu.usable, left), 0) if gpu.unified else gpu.usable


def would_fit(setup: Setup) -> list[str]:
    """Flags with which it would fit, as it does not."""
    job, s = setup.job, setup.job.scenario

    def missing(other: Scenario, graph: bool) -> list[int]:
        made = prepare(replace(job, scenario=other))
        draft, gpus = drafting(made), made.placed.gpus
        below = shared_items(made, draft, gpus, graph=graph)
        there = [room_on(job.gpu_at(d), below) or 0 for d in range(gpus)]
        return [sum(i.nbytes for i in device_items(made, draft, d, graph=graph)) - there[d] for d in range(gpus)]

    moe = any(weight.kind == "experts" for weight in setup.tape.weights)
    return list(advice(s, missing, where=setup.placed, context=setup.context // contexts(s), moe=moe))


def unmatched(setup: Setup) -> list[str]:
    """Patterns of -ot that are in no tensor's name: llama.cpp says nothing of them, and changes nothing."""
    given = setup.placed.overrides
    names = names_of(setup.job, setup.tape) if given else []
    lost = [pattern.pattern for pattern, _ in given if not any(pattern.search(name) for name in names)]
    return [f"override_tensor {pattern[:60]!r} is in no tensor's name and changes nothing" for pattern in lost]


def whole_file(setup: Setup) -> list[Item]:
    """Without a GPU in the scenario the answer counts the whole file: what would be on the host as well."""
    tied = any(weight.tied for weight in setup.tape.weights)
    return [] if tied else list(weight_lines(setup.pieces, setup.placed.host, setup.job.model.origin))


def cache_lines(setup: Setup, device: int) -> Iterator[Item]:
    s = setup.job.scenario
    here = frozenset(i for i in range(setup.placed.layers) if setup.cache_device(i) == device)
    yield from cache_items(
        some_layers(setup.tape, setup.held, here),
        setup.held.kept,
        kv_dtype=s.kv_dtype,
        default="fp16",
        state_dtype="fp32",
        alive=SERVING,
        source="llama.cpp llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp",
    )


def device_items(setup: Setup, draft: Setup | None, device: int, *, graph: bool = True) -> list[Item]:
    """Everything on one GPU, with or without (not `graph`) what the graphs take. What Metal takes beside them is not known."""
    gpu = setup.job.gpu_at(device)
    if gpu is not None and gpu.vendor == "apple":
        return shared_items(setup, draft, device, graph=graph)
    context = Item(path=("cuda context",), nbytes=CUDA_CONTEXT, alive=SERVING, why="one process", source="pytorch #107667")
    return [*shared_items(setup, draft, device, graph=graph), context]


def shared_items(setup: Setup, draft: Setup | None, device: int, *, graph: bool = True) -> list[Item]:
    """Weights, caches and compute buffers on a device or in host memory, those of the draft model apart."""
    items = [*held_items(setup, device), *([compute_item(setup, device)] if graph else [])]
    if draft is not None:
        beside = [*held_items(draft, device), *([compute_item(draft, device)] if graph else [])]
        items += [replace(item, path=(item.path[0], "draft", *item.path[1:])) for item in beside]
    return items


@lru_cache(maxsize=64)
def held_items(setup: Setup, device: int) -> tuple[Item, ...]:
    """The weights and the caches on a device; a projector is on the first GPU."""
    own = (*weight_lines(setup.pieces, device, setup.model.origin), *cache_lines(setup, device))
    return (*own, *projector(setup)) if setup.projector and device == 0 else own


def projector(setup: Setup) -> Iterator[Item]:
    """The weights of the towers, which `--mmproj` names in a file of their own. Source: llama.cpp `tools/mtmd/clip.cpp` (first GPU)."""
    towers = [weight for weight in setup.tape.weights if weight.tower]
    if not towers:
        raise BadInput(f"mmproj: {setup.model.id} has no tower for images or sound")
    if setup.stored:
        raise Unknown("mmproj: the projector's file is not among the model's; not estimated by this version")
    for share in weights_nbytes(towers, setup.job.scheme):
        yield item_of_share(share, SERVING, setup.model.origin)


def compute_item(setup: Setup, device: int) -> Item:
    nbytes = compute_buffers(setup)[device]
    why = f"worst graph of {setup.held.ubatch} tokens over {setup.held.cells * setup.held.streams:,} cells in fp32, as ggml places it"
    source = "llama.cpp ggml_backend_sched_reserve, ggml-alloc.c"
    return Item(path=("compute buffer",), nbytes=nbytes, alive=SERVING, why=why, source=source)


def assumptions(setup: Setup) -> list[str]:
    held, where = setup.held, setup.placed
    attention = "with" if setup.flash else "without"
    context = setup.context
    slots = f"-c {context:,}" + (f" shared by {held.sequences} slots of {held.cells:,} tokens" if held.sequences > 1 else "")
    layers = "all layers" if where.on_gpu > where.layers else f"{where.on_gpu} of {where.layers + 1} layers"
    found = [f"{layers} on the GPU, {slots}, {held.ubatch} tokens per pass, {attention} flash attention"]
    tied = any(weight.tied for weight in setup.tape.weights)
    if setup.job.gpu is not None:
        found.append("token embeddings stay in host memory" + (", and on the GPU as the tied head" if tied else ""))
    if any(weight.tower for weight in setup.tape.weights) and not setup.projector:
        found.append("text only: the tower for images or sound is in a file of its own (--mmproj), which is not counted")
    return found
