"""What SGLang holds beside its pools, line by line: weights, slots for adapters, the context, activations, graphs, attention's workspace.

Sources: SGLang 0.5.6 environ.py, memory_pool.py, lora/mem_pool.py, layers/quantization/mxfp4.py, and start-up logs. What it does not know:
weights that other kernels pad or repack, AMD's AITER workspace, kernels' warm-up.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..catalog.gpus import Gpu
from ..errors import BadInput, Unknown
from ..formats import weights_nbytes
from ..ledger import Item, Moment
from ..tape import Tape
from ..units import GiB, MiB
from .job import Job
from .lines import SERVING, weight_items
from .mxfp4 import FLASHINFER as FLASHINFER_EXPERTS
from .mxfp4 import grown
from .sglang_pools import RUNNING
from .slots import adapter_slots

LOADED = 13 * GiB // 100
"""What loading takes beside the parameters: libraries, rotary tables, remainders of blocks; 0.06–0.15 GiB in logs of 0.6B, 8B."""
ADAPTERS = 8
"""`max_loras_per_batch`."""
FLASHINFER, TRTLLM = 384 * MiB, 512 * MiB
"""Workspace of attention: SGLANG_FLASHINFER_WORKSPACE_SIZE in environ.py, DEFAULT_WORKSPACE_SIZE_MB in trtllm_mha_backend.py."""


def weights(job: Job, tape: Tape) -> list[Item]:
    """The parameters of a rank, and what loading takes beside them: SGLang logs both as "mem usage"."""
    source = "start-up logs: 1.25 against 1.11 (Qwen3-0.6B), 15.02–15.11 against 14.96 GiB (Llama-3.1-8B)"
    beside = Item(path=("weights", "beside parameters"), nbytes=LOADED, alive=SERVING, why="from logs, not derived", source=source)
    return [*weight_items(job, tape, SERVING), _padded(job, tape), beside, *_adapters(job, tape)]


def _adapters(job: Job, tape: Tape) -> Iterator[Item]:
    """Slots of a pool for adapters, made before the other pools. Raises BadInput without a rank, Unknown beside experts and latents."""
    lora = job.scenario.lora
    if lora is None:
        return
    rank = lora.get("rank")
    if not isinstance(rank, int):
        raise BadInput("lora: name the rank (--max-lora-rank), which SGLang takes from the adapters where it is not given")
    if any(w.kind == "experts" for w in tape.weights) or any(cache.name == "latent" or cache.side == "state" for cache in tape.caches):
        raise Unknown("lora: beside experts, latents or states, not estimated for engine 'sglang' by this version")
    yield adapter_slots(job, tape, job.scenario.max_loras or ADAPTERS, rank, "SGLang 0.5.6 lora/mem_pool.py init_buffers")


def _padded(job: Job, tape: Tape) -> Item:
    """What experts in MXFP4 grow by on Blackwell, where FlashInfer's kernels want sizes in multiples of 256 (gpt-oss: 2,880 to 3,072)."""
    blackwell = job.gpu is not None and (job.gpu.compute_capability or "").startswith("10.")
    nbytes = grown(weights_nbytes(tape.weights, job.scheme), FLASHINFER_EXPERTS) if blackwell else 0
    why, source = "sizes rounded up to 256", "SGLang 0.5.6 layers/quantization/mxfp4.py create_weights"
    return Item(path=("weights", "experts", "padding"), nbytes=nbytes, alive=SERVING, why=why, source=source)


def context_item(taken: int) -> Item:
    """What is `taken` before the weights begin to load."""
    source = "SGLang's start-up logs: memory available when the weights begin to load"
    return Item(path=("cuda context",), nbytes=taken, alive=SERVING, why="one process, and NCCL with several ranks", source=source)


def buffers(job: Job, tape: Tape, batched: int, places: int, graphs: int, padding: int) -> list[Item]:
    """What runs beside the pools: a prefill chunk, the graphs, the attention's workspace, the table of `places` for tokens."""
    forward, where = tape.peak()
    latent = any(cache.name == "latent" for cache in tape.caches)
    return [
        Item(
            path=("activations", "forward"), nbytes=forward, alive=frozenset({Moment.PREFILL}),
            why=f"a prefill chunk of {batched:,} tokens, most alive at {where}", source="the tape's forward pass",
        ),
        Item(
            path=("cuda graphs",), nbytes=graphs, alive=RUNNING, why="the larger of 0.1 GiB and 2 MiB for each sequence captured",
            source="start-up logs, and what SGLang 0.5.6 server_args.py reserves",
        ),
        Item(
            path=("buffers", "attention workspace"), nbytes=_workspace(job.gpu, latent), alive=RUNNING, why="of the default backend",
            source="SGLang 0.5.6 environ.py, trtllm_mha_backend.py",
        ),
        Item(
            path=("buffers", "request table"), nbytes=4 * places, alive=RUNNING, why=f"requests × (context + 4) = {places:,}, 4 B each",
            source="SGLang 0.5.6 memory_pool.py ReqToTokenPool",
        ),
        Item(
            path=("buffers", "padding"), nbytes=padding, alive=RUNNING, why="the first place of each pool, for padding",
            source="SGLang 0.5.6 memory_pool.py",
        ),
    ]  # fmt: skip


def _workspace(gpu: Gpu | None, latent: bool) -> int:
    """Bytes of the default attention backend's workspace on NVIDIA's GPUs.

    FlashInfer's; none with FA3 on Hopper, nor with Triton, which latents get on older GPUs; TRT-LLM's for keys and values on B200.
    """
    capability = (gpu.compute_capability or "") if gpu else ""
    if capability == "9.0" or (gpu and gpu.vendor not in ("nvidia", "")):
        return 0
    if capability.startswith("10."):
        return FLASHINFER if latent else TRTLLM
    return 0 if latent else FLASHINFER
