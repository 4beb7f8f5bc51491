"""llama.cpp: model buffers by GGUF type, a KV buffer of all slots, and the compute buffer of its worst graph.

All layers are on one GPU (-ngl at least the model's layers); token embeddings stay on the host, a tied one is on both sides. Sources:
`llama-model.cpp`, `llama-kv-cache*.cpp`, `llama-context.cpp` and ggml's graph allocator. The compute buffer is the peak of the tape in fp32
over `ubatch` tokens with logits of all of them, against which logs agree within 0.15 % (docs/accuracy.md). What it does not know: several
devices, layers or experts on the host, projectors, drafts; the backend's own pools.
"""

from __future__ import annotations

from functools import partial
from math import ceil

from ..errors import Unknown
from ..formats.kv import GGML
from ..ledger import Item
from ..scenario import Scenario
from ..tape import Cache, Kernels, Tape
from ..units import MiB
from .job import MANY, Account, Job
from .lines import SERVING, cache_items, text_caches, weight_items

NAMES = ("llama.cpp",)
ABOUT = "all layers on one GPU, KV by type, windows, states, compute buffer; not: several devices, layers on the host, projectors, drafts"
VERSION = "b7342"

UBATCH = 512
"""`n_ubatch`'s default: llama.cpp common/common.h."""
PADDING = 256
"""The KV cache's cells are a multiple of it: llama.cpp `llama_kv_cache` n_pad, GGML_PAD(n_ctx, 256) in llama-context.cpp."""
CUDA_CONTEXT = 300 * MiB
"""With lazy module loading: pytorch #107667; llama.cpp prints it as "unaccounted" in its memory breakdown."""


def account(job: Job) -> Account:
    """What `llama-server -ngl 999` takes on one GPU; without a GPU in the scenario, all tensors of the file."""
    s = job.scenario
    job.refuse(*MANY, "tensor_split", "override_tensor")
    job.kv_types("fp16", "bf16", "fp32", *GGML)
    sequences = s.sequences or 1
    context = job.context(default=job.model.context_length or 4096)
    ubatch = min(s.ubatch or UBATCH, context)
    flash = s.flash_attention is not False
    cells = ceil(context / sequences / PADDING) * PADDING
    kernels = Kernels(
        attention="flash" if flash else "inplace", norm="fused", mlp="eager", rope="inplace", mla="absorbed", logits="all", frames="freed"
    )
    graph = job.tape(sequences=1, tokens=ubatch, past=max(cells * sequences - ubatch, 0), itemsize=4, kernels=kernels)
    _refuse_host_layers(s, graph)

    items = [item for item in weight_items(job, graph, SERVING) if not item.path[1].endswith(" tower")]
    attention = "with" if flash else "without"
    slots = f"-c {context:,}" + (f" shared by {sequences} slots of {cells:,} tokens" if sequences > 1 else "")
    assumptions = [f"all layers on the GPU, {slots}, {ubatch} tokens per pass, {attention} flash attention"]
    if job.gpu is not None:
        tied = any(weight.tied for weight in graph.weights)
        if not tied:
            items = [item for item in items if item.path[:2] != ("weights", "embedding")]
        assumptions.append("token embeddings stay in host memory" + (", and on the GPU as the tied head" if tied else ""))
    if any(weight.tower for weight in graph.weights):
        assumptions.append("text only: the tower for images or sound is in a file of its own (--mmproj), which is not counted")
    items += cache_items(
        text_caches(graph),
        partial(_held, sequences=sequences, cells=cells, ubatch=ubatch),
        kv_dtype=s.kv_dtype,
        default="fp16",
        state_dtype="fp32",
        alive=SERVING,
        source="llama.cpp llama-kv-cache.cpp, llama-kv-cache-iswa.cpp, llama-memory-recurrent.cpp",
    )
    nbytes, where = graph.peak()
    why = f"worst graph of {ubatch} tokens over {cells * sequences:,} cells in fp32, most alive at {where}"
    source = "ggml_backend_sched_reserve on the worst graph; the tape in fp32"
    items.append(Item(path=("compute buffer",), nbytes=nbytes, alive=SERVING, why=why, source=source))
    items.append(Item(path=("cuda context",), nbytes=CUDA_CONTEXT, alive=SERVING, why="one process", source="pytorch #107667"))
    return Account(
        tape=graph,
        items=items,
        room=job.gpu.usable if job.gpu else None,
        filled={
            "engine_version": s.engine_version or VERSION,
            "sequences": sequences,
            "context_length": context,
            "ubatch": ubatch,
            "flash_attention": flash,
        },
        facts={"compute_buffer": nbytes, "kv_tokens": cells * sequences, "process": sum(i.nbytes for i in items)},
        assumptions=assumptions,
    )


def _refuse_host_layers(s: Scenario, graph: Tape) -> None:
    """Raise Unknown where layers or experts stay on the host; a negative -ngl means all, and the output counts as one (llama.h)."""
    layers = 1 + max((max(weight.layers) for weight in graph.weights if weight.layers and not weight.tower), default=0)
    if s.gpu_layers is not None and 0 <= s.gpu_layers <= layers:
        raise Unknown(f"gpu_layers {s.gpu_layers}: layers on the host are not estimated by this version; all on the GPU are {layers + 1}")
    if s.cpu_moe_layers:
        raise Unknown(f"cpu_moe_layers {s.cpu_moe_layers}: experts on the host are not estimated by this version")


def _held(cache: Cache, *, sequences: int, cells: int, ubatch: int) -> tuple[int, int, str]:
    """A slot's full layers keep all cells, sliding ones min(cells, pad(window + ubatch)) (llama-kv-cache-iswa.cpp)."""
    if cache.window is None:
        return sequences, cells // cache.stride, ""
    needed = ceil((int(cache.window) + ubatch) / PADDING) * PADDING
    return sequences, min(cells, needed), f" (window of {int(cache.window):,} + {ubatch}, padded)"
