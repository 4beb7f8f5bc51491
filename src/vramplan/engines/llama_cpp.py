"""llama.cpp: tensors by device, a cache of all slots, and on each device the compute buffer of its worst graph.

An account has four parts, each with its sources: where a tensor is (llama_cpp_placement.py), what the cache holds (llama_cpp_cache.py),
which graph a pass makes (llama_cpp_graph.py) and how ggml places it (llama_cpp_schedule.py). Judged by llama.cpp's own planner
(data/llama_cpp). What it does not know: the backend's own pools, -sm row and tensor, projectors and drafts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ..dim import numel
from ..errors import BadInput, Unknown
from ..formats import Share, weights_nbytes
from ..formats.kv import GGML
from ..ledger import Item
from ..scenario import Scenario
from ..sources.stored import StoredTensor
from ..tape import Kernels, Tape, Weight
from ..units import MiB
from .job import Account, Device, Job
from .lines import SERVING, cache_items, item_of_share, kv_type, loaded
from .llama_cpp_advice import advice
from .llama_cpp_cache import Slots, layer_bytes, slots, some_layers
from .llama_cpp_graph import Builder, Placed, Store
from .llama_cpp_placement import Placement, file_names, placement
from .llama_cpp_schedule import buffers

NAMES = ("llama.cpp",)
ABOUT = (
    "GPUs and host with -ngl, -ts, -ot, --n-cpu-moe; KV by type, slots, windows, states; compute buffers; also for ollama, LM Studio and "
    "KoboldCpp, which run it; not: -sm row, projectors, a backend's own pools"
)
VERSION = "0.5.0"

UBATCH = 512
"""`n_ubatch`'s default: llama.cpp common/common.h."""
CUDA_CONTEXT = 300 * MiB
"""With lazy module loading: pytorch #107667; llama.cpp prints it as "unaccounted" in its memory breakdown."""
REFUSED = ("tensor_parallel", "pipeline_parallel", "context_parallel", "expert_parallel", "offload", "draft_model", "mmproj")
KERNELS = Kernels(attention="flash", norm="fused", mlp="merged", rope="single", mla="absorbed", logits="all", frames="freed")


@dataclass(slots=True)
class Setup:
    """A job as llama.cpp is started: a pass of `ubatch` tokens on the tape, slots, and where everything is."""

    job: Job
    tape: Tape
    held: Slots
    placed: Placement
    flash: bool
    pieces: list[Piece] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A tensor, or a layer's part of a weight: what stands on `device`."""

    nbytes: int
    device: int
    layer: int | None
    share: Share | None = None
    tensor: StoredTensor | None = None
    part: str = ""


def account(job: Job) -> Account:
    """What `llama-server` takes of each GPU and of the host; without a GPU in the scenario, of one that holds all tensors of the file."""
    s = job.scenario
    setup = prepare(job)
    gpus, host = setup.placed.gpus, setup.placed.host
    compute = compute_buffers(setup)
    devices = [device_items(setup, i, compute[i]) for i in range(gpus)]
    room = job.gpu.usable if job.gpu else None
    totals = [sum(item.nbytes for item in items) for items in devices]
    worst = max(range(gpus), key=lambda i: totals[i], default=0)
    below = host_items(setup, compute[host])
    items = devices[worst] if devices else below
    others = [Device(rank=i, gpu=job.gpu, room=room, items=found) for i, found in enumerate(devices) if i != worst]
    return Account(
        tape=setup.tape,
        items=[*items, *(whole_file(setup) if job.gpu is None and gpus else [])],
        room=room,
        rank=worst,
        others=others,
        host=below if job.gpu is not None else [],
        filled={
            "engine_version": s.engine_version or VERSION,
            "sequences": setup.held.sequences,
            "context_length": s.context_length or job.context(default=job.model.context_length or 4096),
            "ubatch": setup.held.ubatch,
            "flash_attention": setup.flash,
        },
        facts={
            "compute_buffer": compute[worst],
            "kv_tokens": setup.held.cells * setup.held.streams,
            "process": sum(item.nbytes for item in items),
        },
        assumptions=assumptions(setup),
        remarks=[*unmatched(setup), *remarks(setup, max(totals, default=0), room)],
    )


def remarks(setup: Setup, total: int, room: int | None) -> list[str]:
    """Flags with which it would fit, where it does not."""
    job, s = setup.job, setup.job.scenario
    if room is None or total <= room:
        return []

    def fits(other: Scenario) -> bool:
        made = prepare(replace(job, scenario=other))

        def within(compute: Sequence[int]) -> bool:
            return all(sum(i.nbytes for i in device_items(made, d, compute[d])) <= room for d in range(made.placed.gpus))

        return within([0] * (made.placed.gpus + 1)) and within(compute_buffers(made))  # the graph, which is slow, only where the rest fits

    moe = any(weight.kind == "experts" for weight in setup.tape.weights)
    context = s.context_length or job.context(default=job.model.context_length or 4096)
    return list(advice(s, fits, layers=setup.placed.layers, context=context, moe=moe))


def prepare(job: Job) -> Setup:
    """Read the flags, as llama.cpp would refuse or round them."""
    s = job.scenario
    job.refuse(*REFUSED)
    job.kv_types("fp16", "bf16", "fp32", *GGML)
    if s.split_mode in ("row", "tensor"):
        raise Unknown(f"split_mode {s.split_mode!r}: not estimated by this version; layer and none are")
    flash = s.flash_attention is not False
    if not flash and kv_type(s.kv_dtype, "v", "fp16") not in ("fp16", "bf16", "fp32"):
        raise BadInput("kv_dtype: a quantised cache of values needs flash attention (-fa); llama.cpp refuses it without")
    sequences = s.sequences or 1
    context = job.context(default=job.model.context_length or 4096)
    ubatch = min(s.ubatch or UBATCH, -(-context // 256) * 256)
    held = slots(context, sequences, unified=bool(s.kv_unified), ubatch=ubatch, swa_full=bool(s.swa_full), padded_values=not flash)
    ubatch = min(ubatch, held.cells * held.streams)
    held = replace(held, ubatch=ubatch)
    tape = job.tape(sequences=1, tokens=-(-ubatch // sequences) * sequences, past=max(held.cells - ubatch, 1), itemsize=4, kernels=KERNELS)
    layers = 1 + max((max(w.layers) for w in tape.weights if w.layers and not w.tower), default=0)
    gpus = s.gpu_count or len(s.tensor_split or ()) or 1
    where = placement(s, layers, gpus)
    setup = Setup(job, tape, held, where, flash)
    setup.pieces = list(pieces(setup))
    return setup


def unmatched(setup: Setup) -> list[str]:
    """Patterns of -ot that are in no tensor's name: llama.cpp says nothing of them, and changes nothing."""
    given = setup.placed.overrides[: len(setup.placed.overrides) - (setup.job.scenario.cpu_moe_layers or 0)]
    names = _names(setup.job, setup.tape) if given else []
    lost = [pattern.pattern for pattern, _ in given if not any(pattern.search(name) for name in names)]
    return [f"override_tensor {pattern[:60]!r} is in no tensor's name and changes nothing" for pattern in lost]


def _names(job: Job, tape: Tape) -> list[str]:
    """What the file calls its tensors."""
    if job.stored:
        return [tensor.name for tensor in job.model.stored or ()]
    return [name for w in tape.weights if not w.tower for layer in w.layers or (None,) for name in file_names(w, layer)]


# ---- weights -------------------------------------------------------------------------------------------------------------
def pieces(setup: Setup) -> Iterator[Piece]:
    """All tensors with their device; a tied embedding is on the host and where the output is."""
    where, job = setup.placed, setup.job
    if job.stored:
        yield from _stored_pieces(setup)
        return
    for share in weights_nbytes((w for w in setup.tape.weights if not w.tower), job.scheme):
        weight = share.weight
        one = share.nbytes // len(share.layers or (0,))
        for layer in share.layers or (None,):
            names = file_names(weight, layer)
            entry = is_entry(weight)
            for name in names:
                device = where.tensor(name, 0 if is_first(weight) else layer, entry=entry)
                yield Piece(nbytes=one // len(names), device=device, layer=layer, share=share)
            output = where.layer(where.layers)
            if weight.tied and output != where.host:
                yield Piece(nbytes=one, device=output, layer=layer, share=share, part="head")


def _stored_pieces(setup: Setup) -> Iterator[Piece]:
    where = setup.placed
    parts, _ = loaded(setup.job.model, setup.tape)
    untied = any(tensor.name == "output.weight" for tensor in setup.job.model.stored or ())
    for part, tensors in parts.items():
        for tensor in tensors:
            layer = int(tensor.name.split(".")[1]) if tensor.name.startswith("blk.") else None
            entry = tensor.name.startswith(("token_embd", "position_embd", "token_types", "per_layer_token_embd"))
            yield Piece(nbytes=tensor.nbytes, device=where.tensor(tensor.name, layer, entry=entry), layer=layer, tensor=tensor, part=part)
            if tensor.name == "token_embd.weight" and not untied and where.layer(where.layers) != where.host:
                yield Piece(nbytes=tensor.nbytes, device=where.layer(where.layers), layer=None, tensor=tensor, part="head")


def is_entry(weight: Weight) -> bool:
    """Whether llama.cpp counts a weight to the input layer, which is on the host: embeddings and the norm after them."""
    return weight.layers is None and (weight.kind == "embed" or (weight.kind == "norm" and "embed" in weight.name))


def is_first(weight: Weight) -> bool:
    """Whether a weight outside the layers goes with the first one: what makes per-layer inputs (LLM_TENSOR_PER_LAYER_MODEL_PROJ)."""
    return weight.layers is None and weight.kind != "embed" and ".per_layer_" in weight.name


def weight_lines(setup: Setup, device: int) -> Iterator[Item]:
    """The lines of the weights on `device`, as whole weights where all their layers are there."""
    origin = setup.job.model.origin
    found: dict[tuple[int, str], list[Piece]] = {}
    for piece in setup.pieces:
        if piece.device == device:
            key = (id(piece.share), piece.part) if piece.share else (hash(piece.tensor and piece.tensor.dtype), piece.part)
            found.setdefault(key, []).append(piece)
    for same in found.values():
        nbytes, share = sum(piece.nbytes for piece in same), same[0].share
        if share is not None:
            layers = None if share.layers is None else tuple(dict.fromkeys(piece.layer for piece in same if piece.layer is not None))
            yield item_of_share(Share(share.weight, share.format, layers, nbytes), SERVING, origin)
            continue
        tensors = [piece.tensor for piece in same if piece.tensor]
        elements = sum(numel(tensor.shape) for tensor in tensors)
        why = f"{len(tensors)} tensors of {elements:,} elements in {tensors[0].dtype}, as the file's header states them"
        yield Item(path=("weights", same[0].part, tensors[0].dtype), nbytes=nbytes, alive=SERVING, why=why, source=origin)


def whole_file(setup: Setup) -> list[Item]:
    """Without a GPU in the scenario the answer counts the whole file: what would be on the host as well."""
    tied = any(weight.tied for weight in setup.tape.weights)
    return [] if tied else list(weight_lines(setup, setup.placed.host))


# ---- caches and buffers -----------------------------------------------------------------------------------------------------
def cache_device(setup: Setup, layer: int) -> int:
    return setup.placed.host if setup.job.scenario.kv_offload is False else setup.placed.layer(layer)


def cache_lines(setup: Setup, device: int) -> Iterator[Item]:
    s = setup.job.scenario
    here = frozenset(i for i in range(setup.placed.layers) if cache_device(setup, i) == device)
    yield from cache_items(
        some_layers(setup.tape, setup.held, here),
        setup.held.kept,
        kv_dtype=s.kv_dtype,
        default="fp16",
        state_dtype="fp32",
        alive=SERVING,
        source="llama.cpp llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp",
    )


def compute_buffers(setup: Setup) -> list[int]:
    """Bytes of each device's compute buffer, the host's last."""
    s, where, held = setup.job.scenario, setup.placed, setup.held
    own = layer_bytes(setup.tape, held, s.kv_dtype)
    windows = {layer: c for c in setup.tape.caches if c.side == "k" and c.tower is None for layer in c.layers}
    stores = {}
    for layer, sides in own.items():
        if "k" in sides:
            _, kept, _ = held.kept(windows[layer])
            stores[layer] = Store(
                cells=kept, keys=sides["k"], values=sides.get("v", 0), device=cache_device(setup, layer),
                window=windows[layer].window is not None,
            )  # fmt: skip
    builder = Builder(
        tape=setup.tape,
        tokens=int(setup.tape.tokens),
        host=where.host,
        placed=weight_index(setup),
        stores=stores,
        states={
            (layer, c.name): (4 * held.sequences * numel(c.shape), cache_device(setup, layer))
            for c in setup.tape.caches
            if c.side == "state" and c.tower is None
            for layer in c.layers
        },
        flash=setup.flash,
        rotated=rotated(setup),
        offload=s.op_offload is not False,
        windowed=any(c.window is not None for c in setup.tape.caches if c.tower is None),
        value_width=max((c.elements(1) // len(c.layers) for c in setup.tape.caches if c.side == "v" and c.tower is None), default=0),
    )
    nodes = builder.build()
    moved = where.overrides or s.kv_offload is False
    pipelined = where.gpus > 1 and where.on_gpu > where.layers and not moved
    return buffers(nodes, builder.inputs, where.gpus, pipelined=pipelined)


def weight_index(setup: Setup) -> Placed:
    """Where the graph finds a weight's bytes and device: of a file by the tensors' names, else of the tape's own weights."""
    where = setup.placed
    shares: dict[tuple[int, int | None], tuple[int, int]] = {}
    tensors: dict[str, tuple[int, int]] = {}
    for piece in setup.pieces:
        if piece.tensor is not None:
            tensors[piece.tensor.name] = piece.nbytes, piece.device
        elif piece.share is not None:
            key = id(piece.share.weight), piece.layer
            shares[key] = (shares.get(key, (0, 0))[0] * (piece.part != "head") + piece.nbytes, piece.device)

    def placed(weight: Weight, layer: int | None) -> tuple[int, int]:
        found = shares.get((id(weight), layer))
        if found is None:
            named = [tensors[name] for name in file_names(weight, layer) if name in tensors]
            found = (sum(nbytes for nbytes, _ in named), named[-1][1]) if named else None
        return found or (0, where.layer(where.layers if layer is None else layer))

    return placed


def rotated(setup: Setup) -> tuple[bool, bool]:
    """Whether keys, and values, go through a Hadamard matrix: into a quantised cache, by heads of one width that 64 divides.

    Source: llama-kv-cache.cpp, attn_rot_k and attn_rot_v.
    """
    found = []
    for side in ("k", "v"):
        widths = {int(c.shape[-1]) for c in setup.tape.caches if c.side == side and c.tower is None}
        plain = kv_type(setup.job.scenario.kv_dtype, side, "fp16") in ("fp16", "bf16", "fp32")
        found.append(not plain and len(widths) == 1 and min(widths) % 64 == 0)
    return found[0], found[1]


def device_items(setup: Setup, device: int, compute: int) -> list[Item]:
    """Everything on one GPU."""
    items = [*weight_lines(setup, device), *cache_lines(setup, device), compute_item(setup, compute)]
    return [*items, Item(path=("cuda context",), nbytes=CUDA_CONTEXT, alive=SERVING, why="one process", source="pytorch #107667")]


def host_items(setup: Setup, compute: int) -> list[Item]:
    """What is in host memory."""
    return [*weight_lines(setup, setup.placed.host), *cache_lines(setup, setup.placed.host), compute_item(setup, compute)]


def compute_item(setup: Setup, nbytes: int) -> Item:
    why = f"worst graph of {setup.held.ubatch} tokens over {setup.held.cells * setup.held.streams:,} cells in fp32, as ggml places it"
    source = "llama.cpp ggml_backend_sched_reserve, ggml-alloc.c"
    return Item(path=("compute buffer",), nbytes=nbytes, alive=SERVING, why=why, source=source)


def assumptions(setup: Setup) -> list[str]:
    s, held, where = setup.job.scenario, setup.held, setup.placed
    attention = "with" if setup.flash else "without"
    context = s.context_length or held.cells * held.streams
    slots = f"-c {context:,}" + (f" shared by {held.sequences} slots of {held.cells:,} tokens" if held.sequences > 1 else "")
    layers = "all layers" if where.on_gpu > where.layers else f"{where.on_gpu} of {where.layers + 1} layers"
    found = [f"{layers} on the GPU, {slots}, {held.ubatch} tokens per pass, {attention} flash attention"]
    tied = any(weight.tied for weight in setup.tape.weights)
    if setup.job.gpu is not None:
        found.append("token embeddings stay in host memory" + (", and on the GPU as the tied head" if tied else ""))
    if any(weight.tower for weight in setup.tape.weights):
        found.append("text only: the tower for images or sound is in a file of its own (--mmproj), which is not counted")
    return found
