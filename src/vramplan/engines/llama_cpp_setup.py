"""A job as llama.cpp is started: what its flags come to, and where every weight is and every layer's cache.

Two equal setups have equal weights, caches and buffers, so that what is made of one is made once. Source: llama.cpp 0.5.0
`src/llama-context.cpp` (tokens, slots), `common/common.h` (defaults).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

from ..dim import Dim
from ..errors import BadInput, Unknown
from ..families import walk
from ..formats.kv import GGML
from ..kernels import Kernels
from ..scenario import MTP
from ..sources.model import Model
from ..tape import Tape
from .job import Job
from .lines import kv_type
from .llama_cpp_cache import Slots, slots
from .llama_cpp_placement import Placement, placement
from .llama_cpp_programs import contexts, default_context, more_cells, with_defaults
from .llama_cpp_weights import Piece, pieces
from .process import CUDA_CONTEXT

BATCH, UBATCH = 2048, 512
"""Defaults of `n_batch`, which `n_ubatch` never exceeds, and of that: common.h."""
REFUSED = (
    "tensor_parallel", "pipeline_parallel", "data_parallel", "context_parallel", "expert_parallel", "offload",
)  # fmt: skip
KERNELS = Kernels(
    attention="flash", norm="fused", mlp="merged", rope="single", mla="absorbed", logits="all", frames="freed", recurrence="fused"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A pass of `tokens` tokens of a model whose weights have the format `weights`; slots, places, and the types of keys and values.

    Of the tokens `outputs` give logits (0: all).
    """

    model: Model
    weights: str
    stored: bool
    tokens: int
    held: Slots
    placed: Placement
    kv: tuple[str, str]
    flash: bool
    kv_offload: bool
    op_offload: bool
    outputs: int
    context: int
    projector: bool
    job: Job = field(compare=False, repr=False)

    @property
    def tape(self) -> Tape:
        """The pass."""
        return tape_of(self.model, self.tokens)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The weights by device."""
        known = Loaded(model=self.model, weights=self.weights, stored=self.stored, tokens=self.tokens, placed=self.placed, job=self.job)
        return pieces_of(known)

    def cache_device(self, layer: int) -> int:
        """Where a layer's cache is."""
        return self.placed.layer(layer) if self.kv_offload else self.placed.host


@lru_cache(maxsize=32)
def tape_of(model: Model, tokens: int) -> Tape:
    """A pass of so many tokens. What llama.cpp's graph is made of it does not depend on the tokens in the cache."""
    return walk(Tape(Dim(1, "sequences"), Dim(tokens, "tokens"), 1, 4, KERNELS), model.config, model.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What of a setup the weights depend on, and no cache."""

    model: Model
    weights: str
    stored: bool
    tokens: int
    placed: Placement
    job: Job = field(compare=False, repr=False)


@lru_cache(maxsize=64)
def pieces_of(known: Loaded) -> tuple[Piece, ...]:
    """The weights by device."""
    return tuple(pieces(known.job, tape_of(known.model, known.tokens), known.placed))


def prepare(job: Job) -> Setup:
    """Read the flags, as llama.cpp would refuse or round them."""
    s = with_defaults(job.scenario)
    job.refuse(*REFUSED)
    job.kv_types("fp16", "bf16", "fp32", *GGML)
    refuse_split(job)
    flash = s.flash_attention is not False
    kv = kv_type(s.kv_dtype, "k", "fp16"), kv_type(s.kv_dtype, "v", "fp16")
    if not flash and kv[1] not in ("fp16", "bf16", "fp32"):
        raise BadInput("kv_dtype: a quantised cache of values needs flash attention (-fa); llama.cpp refuses it without")
    sequences = s.sequences or 1
    context = contexts(s) * (s.context_length or default_context(job))  # beyond the model's own it warns, and goes on
    ubatch = min(s.ubatch or UBATCH, s.logical_batch or BATCH, -(-context // 256) * 256)
    cells = context + more_cells(s)
    held = slots(cells, sequences, unified=bool(s.kv_unified), ubatch=ubatch, swa_full=bool(s.swa_full), padded_values=not flash)
    ubatch = min(ubatch, held.cells * held.streams)
    tokens = -(-ubatch // sequences) * sequences
    layers = 1 + max((max(w.layers) for w in tape_of(job.model, tokens).weights if w.layers and not w.tower), default=0)
    return Setup(
        model=job.model,
        weights=job.scheme.name,
        stored=job.stored,
        tokens=tokens,
        held=replace(held, ubatch=ubatch),
        placed=placement(s, layers, free(job)),
        kv=kv,
        flash=flash,
        kv_offload=s.kv_offload is not False,
        op_offload=s.op_offload is not False,
        outputs=s.outputs or 0,
        context=context,
        projector=bool(s.mmproj),
        job=job,
    )


def free(job: Job) -> tuple[float, ...]:
    """Free memory of each GPU, by which layers go where -ts says nothing (`src/llama-model.cpp`, load_tensors); alike for alike GPUs."""
    count = job.scenario.gpu_count or len(job.scenario.tensor_split or ()) or 1
    return tuple(float(gpu.usable - CUDA_CONTEXT) for gpu in job.gpus) if len(job.gpus) > 1 else (1.0,) * count


def refuse_split(job: Job) -> None:
    """Raise for the ways to split a model that are not by whole layers.

    Rows need a buffer type that of 0.5.0's backends SYCL and Hexagon have, no longer CUDA (`ggml/src/ggml-cuda/ggml-cuda.cu`,
    ggml_backend_cuda_reg_get_proc_address); loading stops without it (`src/llama-model.cpp`, make_gpu_buft_list).
    """
    mode, version = job.scenario.split_mode, job.scenario.engine_version
    if mode == "row" and version in (None, "0.5.0") and job.gpu is not None and job.gpu.vendor in ("nvidia", "amd", "apple"):
        raise BadInput("split_mode 'row': llama.cpp 0.5.0 stops with \"device does not support split buffers\"; it has layer and none")
    if mode in ("row", "tensor"):
        raise Unknown(f"split_mode {mode!r}: not estimated by this version; layer and none are")


def drafting(setup: Setup) -> Setup | None:
    """The draft model beside it: all its layers on the GPUs, a cache of as many tokens in fp16, logits of one token in each slot.

    Source: `common/speculative.cpp`, common_base_params_to_speculative. Raises Unknown for drafts that are no model of their own.
    """
    job, s = setup.job, setup.job.scenario
    if job.draft is None:
        if s.draft_model == MTP:
            raise Unknown("draft_model mtp: not estimated for engine 'llama.cpp' by this version; a model of its own is")
        return None
    scenario = replace(
        s,
        weights=None if job.draft.gguf else s.weights,
        context_length=setup.held.cells * setup.held.streams,
        outputs=setup.held.sequences,
        gpu_layers=None,
        cpu_moe_layers=None,
        override_tensor=None,
        kv_dtype=None,
        draft_model=None,
        mmproj=None,
        program=None,
    )
    return prepare(replace(job, scenario=scenario, model=job.draft, draft=None, scheme=job.draft_scheme or job.scheme))
