"""What ExLlamaV2 and V3 have in common: pages of 256 tokens, the embedding in host memory, a head of its own, everything in fp16.

Several GPUs take layers in turn, each as many as it has room for. What they do not know here: shares by hand (`-gs`), tensor parallelism,
drafts, LoRA, towers for images.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ..errors import BadInput, Unknown
from ..formats import scheme
from ..ledger import Item, Moment, ledger
from ..parallel.pipeline import part_of
from ..tape import Tape
from ..tensors import Weight
from .cuda_context import context_item
from .job import MANY, Account, Device, Job
from .lines import counted, weight_items

PAGE = 256
"""Tokens of a page: exllamav2 0.3.2 `attn.py` PAGED_PAGE_SIZE, exllamav3 1.4.1 `constants.py`."""
CHUNK = 2048
"""Tokens of a prompt that one pass takes: exllamav2 `config.py` max_input_len, exllamav3 `generator.py` max_chunk_size."""
ALWAYS = frozenset({Moment.LOAD, Moment.PREFILL, Moment.DECODE})


def fitted(job: Job, *formats: str, vendors: tuple[str, ...] = ("nvidia", "")) -> Job:
    """The job with its weights as fp16, where they are fp32. Raises BadInput and Unknown for what these engines do not run."""
    job.refuse(*(key for key in MANY if key != "gpu_count"), "gpu_memory_utilization")
    job.generates_only()
    job.only_formats(*formats)
    if job.gpu is not None and job.gpu.vendor not in vendors:
        raise BadInput(f"gpu {job.gpu.name}: {job.engine} runs on {' and '.join(v for v in vendors if v)} GPUs only")
    return replace(job, scheme=scheme("fp16")) if job.scheme.name == "fp32" else job


def cache_tokens(job: Job, context: int) -> int:
    """Tokens of the cache: those of every sequence at its longest, in whole pages."""
    return -(-context * (job.scenario.sequences or 1) // PAGE) * PAGE


def weights(job: Job, tape: Tape) -> tuple[list[Item], list[Item]]:
    """The weights on the GPU, and those in host memory: the embedding (`caps.prefer_cpu`, `embed_cpu`). A tied head is a copy.

    Towers are components of their own, which are loaded apart.
    """
    towers = {weight.part for weight in tape.weights if weight.tower}
    items = [item for item in weight_items(job, tape, ALWAYS) if item.path[1] not in towers]
    device = [item for item in items if item.path[1] != "embedding"]
    host = [item for item in items if item.path[1] == "embedding"]
    if job.stored and not any(item.path[1] == "head" for item in device):
        nbytes = sum(item.nbytes for item in host)
        why, source = "a copy of the embedding, as the file has none", "exllamav2 0.3.2 model.py, head.alt_key"
        device.append(Item(path=("weights", "head", "copy"), nbytes=nbytes, alive=ALWAYS, why=why, source=source))
    return device, host


def matrices(tape: Tape, part: str) -> list[Weight]:
    """The language model's matrices of a part."""
    return [w for w in tape.weights if w.tower is None and w.part == part and len(w.shape) == 2 and w.kind in ("linear", "experts", "head")]


Build = Callable[[Tape, int, bool], list[Item]]
"""The items of a device from its part of the tape, its number, and whether it is the last: what ExLlama loads there, embedding left out."""


def answer(job: Job, tape: Tape, build: Build, *, version: str, context: int, chunk: int) -> Account:
    """The account of a process that loads the model on the scenario's GPUs: in turn, each with as many layers as it has room for."""
    tokens, sequences = cache_tokens(job, context), job.scenario.sequences or 1
    loaded = [[*items, context_item(job.gpu, ALWAYS)] for items in _in_turn(job, tape, build)]
    room = job.gpu.usable if job.gpu else None
    worst = max(range(len(loaded)), key=lambda device: ledger(loaded[device]).peak()[1])
    return Account(
        tape=tape,
        items=loaded[worst],
        room=room,
        rank=worst,
        others=[Device(rank=i, gpu=job.gpu, room=room, items=items) for i, items in enumerate(loaded) if i != worst],
        filled={
            "engine_version": version,
            "sequences": sequences,
            "context_length": context,
            "max_batched_tokens": chunk,
        },
        facts={"kv_tokens": tokens},
        assumptions=[
            f"{job.engine} {version}: a cache of {tokens:,} tokens for {counted(sequences, 'sequence')} of {context:,}",
            f"chunks of {chunk:,} tokens",
            f"loaded by load_autosplit with its defaults, on {counted(len(loaded), 'GPU')}",
        ],
        remarks=["not validated by measurement: weights, cache and buffers follow the engine's source; torch's slack is not counted"],
        host=weights(job, tape)[1],
    )


def _in_turn(job: Job, tape: Tape, build: Build) -> list[list[Item]]:
    """Items by device. A device takes layers until the next would not fit; the last one takes the rest, fitting or not.

    Raises BadInput where the GPUs' memory is not known, and Unknown for a file whose tensors would be split.
    """
    count = job.scenario.gpu_count or 1
    if count == 1:
        return [build(tape, 0, True)]
    if job.gpu is None:
        raise BadInput(f"gpu_count {count}: {job.engine} fills one GPU after another: name the GPU, or its memory")
    if job.stored:
        raise Unknown("a file's own tensors are not split over GPUs by this version: name the model by its id or config.json")
    limit = job.gpu.usable - context_item(job.gpu, ALWAYS).nbytes
    depth = max((max(w.layers) + 1 for w in tape.weights if w.layers and not w.tower), default=0)
    loaded: list[list[Item]] = []
    start = 0
    while start <= depth:
        ends = range(start + 1, depth + 2)
        made = partial(_built, build, tape, len(loaded), start, depth)
        end = ends[-1] if len(loaded) == count - 1 else ends[max(bisect_right(ends, limit, key=partial(_peak, made)), 1) - 1]
        loaded.append(made(end))
        start = end
    return loaded


def _peak(made: Callable[[int], list[Item]], end: int) -> int:
    return ledger(made(end)).peak()[1]


def _built(build: Build, tape: Tape, number: int, start: int, depth: int, end: int) -> list[Item]:
    """The items of device `number` with the layers from `start` to `end`: embedding before the first, the head as one after the last."""
    layers = range(start, min(end, depth))
    part = part_of(tape, layers, lambda weight: start == 0 if weight.kind == "embed" else end > depth, layers)
    return build(part, number, end > depth)
