"""vLLM's profile run: what torch has allocated at its peak, tensor by tensor.

One pass of `max_num_batched_tokens` through the model, then the sampler over `max_num_seqs` rows of logits; the peak is the larger of both,
beside what is held through both; or the vision encoder. Nothing here is fitted. What it does not know: LoRA's and drafts' own buffers in
the pass, all-gather buffers, and of pictures what vllm_pictures.py does not.
Sources: v1/worker/gpu_model_runner.py (profile_run, _dummy_run, _dummy_sampler_run) and v1/sample/ops/topk_topp_sampler.py of vLLM 0.19.0
and 0.21.0; worker/model_runner.py at 0.8.5 for V0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..allocator import unsplit
from ..catalog.gpus import Gpu
from ..dim import numel
from ..kernels import Kernels
from ..ledger import Item
from ..tape import Tape
from ..units import MiB
from .job import Job
from .lines import SERVING, counted
from .pooling import pools
from .process import CUBLAS_WORKSPACE, CUBLAS_WORKSPACE_HOPPER
from .vllm_pictures import profiled

TRITON_SAMPLER, FLASHINFER_SAMPLER = (0, 17), (0, 21)
"""Releases since which top-k and top-p need no sorted logits: a Triton kernel (from 8 rows on), then FlashInfer's for any number."""
SORTED = (4, 4, 8, 8, 12)
"""Bytes a logit beside the model's own, where it is sorted: itself in fp32, sorted with indices (int64), and torch's segmented sort: an
index, and a second buffer of keys and indices; aten/src/ATen/native/cuda/Sort.cu `segmented_sort_pairs`."""
MASKED = (4, 4, 4)
"""The same where it is masked in place: itself, probabilities and random numbers in fp32 (0.21: masked, and probabilities)."""
MANAGED = (0, 13)
"""Since then experts' workspaces are kept: `current_workspace_manager()` in fused_moe/modular_kernel.py."""
LATENTS = 64 * 1024
"""Most tokens whose latents are expanded at once: `determine_chunked_prefill_workspace_size`, layers/attention/mla_attention.py."""
L2 = {"7.5": 6, "8.0": 40, "8.6": 6, "8.9": 72, "9.0": 50, "10.0": 126, "12.0": 96}
"""MiB of L2 cache by compute capability (NVIDIA's architecture papers), which Inductor clears before each timing of a kernel while the
pass compiles, beside the kernel's tensors: torch/_inductor/runtime/benchmarking.py `benchmark_gpu`."""
PROCESSORS = {"7.5": 40, "8.0": 108, "8.6": 84, "8.9": 128, "9.0": 132, "10.0": 148, "12.0": 170}
"""Multiprocessors by compute capability: the Triton sampler has a row of logits for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """The profile run's size, and by what release and how it runs; the largest batch to be `captured` as a graph.

    A pass keeps the hidden `states` of so many layers for a draft.
    """

    sequences: int
    tokens: int
    context: int
    running: tuple[int, int]
    eager: bool
    gpu: Gpu | None
    drafting: bool = False
    states: int = 0
    captured: int = 512

    @property
    def capability(self) -> str:
        """The GPU's compute capability; Hopper's where it is not known, which the logs are of."""
        return (self.gpu.compute_capability if self.gpu else None) or "9.0"


def kernels(running: tuple[int, int]) -> Kernels:
    """The kernels of a release's pass."""
    return Kernels(
        attention="flash", norm="fused", mlp="merged", rope="inplace", mla="absorbed", logits="last", frames="freed", recurrence="fused",
        experts="workspaces",
    )  # fmt: skip


def activations(job: Job, tape: Tape, run: Pass, *, first: bool, last: bool) -> list[Item]:
    """The peak of a rank of a pipeline's stage: what is held throughout, and the larger of pass and sampler; the `last` stage samples,
    unless the model pools hidden states (`_dummy_pooler_run`), which is small.
    """
    pictures, encoder = _pictures(job, run)
    held = [_blas(run), *_experts(job, tape, run), *pictures]
    if not first:
        held.append(_item("stage input", 2 * _stream(job, run), f"hidden state and residual of {run.tokens:,} tokens"))
    passes = [_forward(job, tape, run), *([_sampler(job, run)] if last and not pools(job, tape) else [])]
    if encoder:
        passes.append(_item("encoder", encoder, "the pictures of a pass together", "the tape's pass of the vision tower"))
    return [*held, max(passes, key=lambda item: item.nbytes)]


def _item(name: str, nbytes: int, why: str, source: str = "vLLM 0.19.0 v1/worker/gpu_model_runner.py") -> Item:
    return Item(path=("activations", name), nbytes=nbytes, alive=SERVING, why=why, source=source)


def _hidden(job: Job) -> int:
    size = job.model.text.get("hidden_size")
    return size if isinstance(size, int) else 0


def _stream(job: Job, run: Pass) -> int:
    """Bytes of the pass's hidden state."""
    return run.tokens * _hidden(job) * job.itemsize


def _blas(run: Pass) -> Item:
    nbytes = CUBLAS_WORKSPACE_HOPPER if run.capability == "9.0" else CUBLAS_WORKSPACE
    return _item("cublas workspace", nbytes, "of one handle and stream", "pytorch aten/src/ATen/cuda/CublasHandlePool.cpp")


def logits(job: Job, run: Pass) -> int:
    """Elements of the sampler's logits: a row of the vocabulary for each sequence."""
    named = job.model.text.get("vocab_size")
    return run.sequences * named if isinstance(named, int) else 0


def _sampler(job: Job, run: Pass) -> Item:
    """Logits of one row a sequence, and the hidden state that they are made of, its last rows, and random ones in their place."""
    rows = logits(job, run)
    masked = run.running >= FLASHINFER_SAMPLER or (run.running >= TRITON_SAMPLER and run.sequences >= 8)
    each = [job.itemsize, *(MASKED if masked else SORTED), *([2 * job.itemsize] if run.drafting else [])]
    programs = min(PROCESSORS.get(run.capability, 132), run.sequences) if masked and run.running < FLASHINFER_SAMPLER else 0
    tensors = [*(n * rows for n in each), 4 * programs * rows // run.sequences]
    nbytes = sum(n + unsplit(n) for n in tensors) + _stream(job, run) + 2 * run.sequences * _hidden(job) * job.itemsize
    scratch = f" + {programs} rows in fp32" if programs else ""
    of = f"{counted(run.sequences, 'sequence')} × {rows // run.sequences:,} logits"
    why = f"{of} × {sum(each)} B{scratch}, blocks' remainders, and hidden states"
    return _item("sampler", nbytes, why, "vLLM 0.19.0 v1/sample/ops/topk_topp_sampler.py")


def _forward(job: Job, tape: Tape, run: Pass) -> Item:
    """The tape's pass. Compiled, in pieces between attention, each piece's inputs (attention's output and the residual) are held until it
    returns; otherwise Python's frames hold the layer's input, its norm and the MLP's, and what goes into the last product its output.
    """
    latents = _latents(tape, job, run)
    if latents:
        tape = replace(tape, ops=[replace(op, workspace=latents) if op.name.endswith(".attention") else op for op in tape.ops])
    nbytes, where = tape.peak()
    nbytes += run.states * _stream(job, run)
    compiled = not run.eager and run.running >= (0, 8)
    nbytes += 2 * _stream(job, run) + L2.get(run.capability, 50) * MiB if compiled else 3 * _stream(job, run)
    held = "its pieces' inputs and the cleared L2 cache" if compiled else "its frames"
    return _item("forward", nbytes, f"{run.tokens:,} tokens, most alive at {where}, with what is held by {held}", "the tape's forward pass")


def _latents(tape: Tape, job: Job, run: Pass) -> int:
    """Bytes of past latents' keys and values, expanded to all heads of a rank."""
    wide = next((w.shape[0] for w in tape.weights if w.name.endswith("kv_b_proj.weight")), 0)
    return latents_at_once(run) * int(wide) * job.itemsize


def latents_at_once(run: Pass) -> int:
    """Tokens of earlier chunks whose latents are taken together."""
    at_once = min(max(8 * run.context, 4 * run.sequences * 16), LATENTS)
    return max(at_once, run.sequences * 16)


def _experts(job: Job, tape: Tape, run: Pass) -> list[Item]:
    """Workspaces of a rank's experts: rows of tokens × top_k, as wide as the output or the product, and as gate and up together.

    MXFP4's kernels on Hopper have none. Source: TritonExperts.workspace_shapes, vLLM 0.19.0 fused_moe/fused_moe.py.
    """
    matrices = [w for w in tape.weights if w.kind == "experts" and len(w.shape) > 1]
    if not matrices or run.running < MANAGED or job.scheme.name == "mxfp4":
        return []
    hidden = _hidden(job)
    rows = run.tokens * matrices[0].active
    ups = {int(size) for w in matrices for size in w.shape if int(size) != hidden} or {hidden}
    product = min(ups)
    wide = max(max(ups), 2 * product)
    nbytes = rows * (max(product, hidden) + max(wide, hidden)) * job.itemsize
    why = f"{rows:,} rows × ({max(product, hidden):,} + {max(wide, hidden):,}) × {job.itemsize} B, kept between passes"
    return [_item("expert workspaces", nbytes, why, "vLLM 0.19.0 layers/fused_moe/fused_moe.py, modular_kernel.py")]


def _pictures(job: Job, run: Pass) -> tuple[list[Item], int]:
    """As many pictures as a pass has tokens for: their pixels, and what the encoder makes of them; and the encoder's own peak."""
    if not isinstance(job.model.config.get("vision_config"), dict) or run.running < (0, 8):
        return [], 0
    picture, encoder = profiled(job.model, kernels((0, 21)))
    count = max(run.tokens // picture.tokens, 1) if picture else 0
    tokens = count * picture.tokens if picture else run.tokens
    nbytes = tokens * _hidden(job) * job.itemsize + (count * numel(picture.pixels) * job.itemsize if picture else 0)
    what = f"{counted(count, 'picture')} with their pixels" if picture else "pictures as far as a pass has tokens, without their pixels"
    return [_item("pictures", nbytes, f"{what}: {tokens:,} tokens × {_hidden(job):,} × {job.itemsize} B")], count * encoder
