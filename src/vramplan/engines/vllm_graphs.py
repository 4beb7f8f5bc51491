"""vLLM's CUDA graphs and what else torch does not see: how many batches are captured, their pool, the driver's share, NCCL.

What it does not know: other attention backends' scratch in graphs, graphs of LoRA's variants, drafts' graphs, other GPUs' drivers.
Sources: vLLM 0.19.0 config/vllm.py `_set_cudagraph_sizes`, v1/attention/backends/flash_attn.py, v1/worker/gpu_worker.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..dim import numel
from ..ledger import Item, Moment
from ..tape import Tape
from ..units import GiB, MiB
from .lines import SERVING, counted
from .vllm_profile import Pass, latents_at_once

COUNTED = (0, 20)
"""Since then graphs are estimated and subtracted from the budget: `VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS` in envs.py is on by default in
0.20.0 and off in 0.19.0, though the log says "default since v0.21.0"."""
OUTSIDE = "outside the budget"
SPLITS = 32
"""Parts of a sequence that FlashAttention 3 adds up in graphs: `flash_attn_max_num_splits_for_cuda_graph`, config/attention.py."""
DRIVER, DRIVER_LAYER, DRIVER_EXPERTS = 1_760_000, 149_000, 4_800_000
"""Bytes that a captured graph takes of the driver: itself, for each layer, and more for a model with experts. Fitted: the first two on ten
dense models of the 0.19.0 logs on H100 (within 0.1 GiB of 0.51–1.61, Gemma 3 up to 0.2 above), the third on mixtures of 64 small experts
(4.4 to 5.1 MB for DeepSeek-V2-Lite, Kimi-VL, Qwen1.5-MoE); others take less: gpt-oss 3.0 and 3.2, Qwen3-30B-A3B 2.9, Llama 4 2.0."""
FLASHINFER = 394 * MiB
"""VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE's default: vLLM 0.21.0 envs.py."""
NON_TORCH = {
    (0, 19): ((1, GiB // 4), (2, 209 * GiB // 100), (4, 217 * GiB // 100)),
    (0, 11): ((1, 13 * GiB // 100), (2, 55 * GiB // 100)),
    (0, 7): ((1, GiB // 25), (2, 21 * GiB // 10)),
    (0, 0): ((1, 179 * GiB // 100), (2, 358 * GiB // 100)),
}
"""What torch does not see, by release and from so many tensor-parallel ranks on: NCCL's and the all-reduce's buffers, cuBLAS, kernels.
Medians of logs: 0.19.0 on H100 (0.24–0.46 in 43 with one rank, 2.06–2.11 in 10 with two, 2.13–2.21 GiB in 5 with four); 0.11 of the same
project's table; 0.8.5 on one RTX 2060 and 0.7.0 on eight A100; before 0.7 the CUDA context counts too (vllm#10511, one log each)."""
PIPELINED = 7 * GiB // 100
"""The same on a stage of a pipeline without tensor parallelism: 0.07 GiB in 2 logs of 0.19.0."""
CONTEXT = 548 * GiB // 1024
"""Already taken when vLLM starts (CUDA context): 0.51 GiB in llm-d-planner's H100 logs, with one GPU."""
CONTEXT_AND_NCCL = 3 * GiB // 2
"""With several: about 1.5 GiB in the same logs."""


def shapeless(tape: Tape, run: Pass, tensor: int, stages: int) -> list[Item]:
    """What has no shape on a rank: memory that torch does not see, CUDA graphs, the context where it is not counted with the first."""
    source = "start-up logs of vLLM on H100: a median by release and number of ranks"
    other = Item(path=("non-torch",), nbytes=non_torch(run, tensor, stages), alive=SERVING, why="NCCL, cuBLAS and kernels", source=source)
    items = [other, _graphs(tape, run), *_workspace(tape, run)]
    if run.running >= (0, 7):
        nbytes = CONTEXT if tensor * stages == 1 else CONTEXT_AND_NCCL
        source = "0.51 GiB in vLLM's starting snapshot on H100; about 0.3 GiB on consumer cards"
        items.append(Item(path=("cuda context", OUTSIDE), nbytes=nbytes, alive=SERVING, why="one process", source=source))
    return items


def _workspace(tape: Tape, run: Pass) -> Iterator[Item]:
    """Buffers of attention that are made after the profile: earlier chunks' latents of MLA, FlashInfer's on Blackwell."""
    latents = [numel(cache.shape) for cache in tape.caches if cache.name == "latent"]
    nbytes = latents_at_once(run) * latents[0] * 2 if latents else FLASHINFER if run.capability.startswith("10.") else 0
    if nbytes:
        why = f"{latents_at_once(run):,} tokens' latents in 16 bits" if latents else "FlashInfer's"
        source = "vLLM 0.21.0 layers/attention/mla_attention.py, v1/attention/backends/flashinfer.py"
        yield Item(path=("attention workspace", OUTSIDE), nbytes=nbytes, alive=frozenset({Moment.DECODE}), why=why, source=source)


def non_torch(run: Pass, tensor: int, stages: int) -> int:
    """Bytes that torch does not see on a rank."""
    if tensor == 1 < stages:
        return PIPELINED
    table = next(table for since, table in NON_TORCH.items() if run.running >= since)
    return next(nbytes for least, nbytes in reversed(table) if tensor >= least)


def sizes(run: Pass) -> tuple[int, ...]:
    """The batches that are captured: 1, 2, 4, every 8th below 256, every 16th to 512; within twice the sequences, and the pass.

    Before 0.11.1 every 8th to 512, within the pass (V0: to 256 sequences, `_BATCH_SIZES_TO_CAPTURE`). gpt-oss has every 16th to 1,024.
    """
    if run.running < (0, 8):
        listed, most = (1, 2, 4, *range(8, 257, 8)), run.sequences
    elif run.captured > 512:
        listed, most = (1, 2, 4, *range(8, 256, 8), *range(256, run.captured + 1, 16)), min(run.tokens, run.captured)
    elif run.running < (0, 12):
        listed, most = (1, 2, 4, *range(8, 513, 8)), min(run.tokens, 512)
    else:
        listed, most = (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)), min(2 * run.sequences, run.tokens, 512)
    return tuple(size for size in listed if size <= most) or (1,)


def _graphs(tape: Tape, run: Pass) -> Item:
    """The pool that graphs share, for the largest batch, and the driver's part of each.

    Each batch is captured in pieces and, since 0.11, if no larger than `max_num_seqs`, once more as a whole for decoding
    (v1/cudagraph_dispatcher.py `initialize_cudagraph_keys`). The pool has FlashAttention 3's partial outputs
    in fp32 on Hopper (of 16-bit models) and one pass of the largest batch.
    """
    path = ("cuda graphs", "budget" if run.running >= COUNTED else OUTSIDE)
    if run.eager:
        return Item(path=path, nbytes=0, alive=frozenset({Moment.DECODE}), why="eager", source="--enforce-eager")
    captured = sizes(run)
    split = run.capability == "9.0" and run.running >= (0, 11) and tape.itemsize == 2
    partial = SPLITS * captured[-1] * _attended(tape) * 4 if split else 0
    layers = {i for w in tape.weights if w.layers and not w.tower for i in w.layers}
    experts = any(w.kind == "experts" for w in tape.weights)
    count = len(captured) + (sum(size <= run.sequences for size in captured) if run.running >= (0, 11) else 0)
    each = DRIVER + DRIVER_LAYER * len(layers) + DRIVER_EXPERTS * experts
    nbytes = partial + tape.peak()[0] * captured[-1] // run.tokens + count * each
    why = f"{counted(count, 'graph')} of up to {captured[-1]} tokens × {each:,} B of the driver's, and a pool for the largest"
    source = "vLLM 0.19.0 config/vllm.py; the driver's part fitted on start-up logs of 0.19.0 on H100"
    return Item(path=path, nbytes=nbytes, alive=frozenset({Moment.DECODE}), why=why, source=source)


def _attended(tape: Tape) -> int:
    """Elements that attention gives for a token on a rank: heads × width, which is the latent's where it is absorbed."""
    ops = [op for op in tape.ops if op.name.endswith(".attention") and len(op.writes) > 1]
    rank = next((int(w.shape[1]) for w in tape.weights if w.name.endswith("kv_b_proj.weight")), 0)
    return max((int(op.writes[1].shape[1]) * rank if rank else int(op.writes[0].shape[-1]) for op in ops), default=0)
