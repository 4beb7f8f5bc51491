"""Roofs of inference: a step of decoding, and a prompt.

A step reads the weights once, of experts those that its tokens touch, and each sequence's cache; ranks of a tensor-parallel group do their
parts at once and add them up, stages and layer-split GPUs work one after the other, and what lies on the host is read there (llama.cpp) or
brought over PCIe. What it does not know: other requests in between, speculative decoding.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from ..catalog.gpus import Gpu
from ..errors import Unknown
from .hardware import bandwidth, link, pcie, peak
from .roof import Roof
from .work import Walked, cache_bytes, read_shares, walked, weight_bytes

if TYPE_CHECKING:
    from ..estimate import Estimate

CHUNK = 8192
"""Tokens of a prompt in one pass where the scenario names none: what vLLM takes at once on an 80 GB card (0.19 `engine/arg_utils.py`)."""
LATENCY = 6.6e-6, 0.6e-6, 1.0e-6
"""Seconds that a ring of NCCL takes to start, and for a hop over NVLink and over PCIe, with its LL protocol (NCCL 2.2x
`src/graph/tuning.cc`: baseLat, hwLat)."""


EAGER = ("transformers", "litgpt")
"""Engines whose Python starts each kernel by itself, ahead of the GPU, without CUDA graphs."""


def lengths(answer: Estimate) -> tuple[int, int, int]:
    """Sequences decoded at once, tokens of a prompt, and those that a decoded token sees, the mean over the output.

    A scenario that names no prompt has one of what its output leaves of the context, or of half of it. At once are as many as the scenario
    has, named or by the engine's default, or as the engine's pool of cache holds of them.
    """
    s, held = answer.scenario, answer.facts.get("kv_tokens")
    sequences, context = s.sequences or 1, s.context_length or answer.model.context_length or 4096
    if answer.job.engine == "llama.cpp" and held:
        context = max(held // sequences, 1)
    output = s.output_length or 0
    prompt = s.prompt_length or max(context - output if output else context // 2, 1)
    depth = prompt + output // 2
    return min(sequences, max(held // depth, 1)) if held else sequences, prompt, depth


def decode(answer: Estimate, sequences: int, depth: int) -> Roof:
    """One token for each of `sequences`, each seeing `depth` tokens."""
    one = walked(answer.model, 1, depth - 1, _group(answer))
    cached = cache_bytes(answer.job, one.caches, depth) * sequences
    return _passes(answer, one, tokens=sequences, cached=cached, flops=one.flops * sequences, passes=1)


def prefill(answer: Estimate, prompts: int, length: int) -> Roof:
    """`prompts` of `length` tokens each, in passes of as many tokens as the engine takes at once."""
    s = answer.scenario
    passes = ceil(prompts * length / (s.ubatch or s.max_batched_tokens or CHUNK))
    one = walked(answer.model, length, 0, _group(answer))
    cached = cache_bytes(answer.job, one.caches, length) * prompts
    return _passes(answer, one, tokens=ceil(prompts * length / passes), cached=cached, flops=one.flops * prompts, passes=passes)


def _group(answer: Estimate) -> int:
    """Ranks that do their parts of a layer at once."""
    return answer.scenario.tensor_parallel or 1


def _passes(answer: Estimate, one: Walked, *, tokens: int, cached: int, flops: float, passes: int) -> Roof:
    """`passes` over `tokens` each; a rank of each stage reads `cached` bytes of caches and takes `flops`, of all passes and stages."""
    gpu, s, group = answer.gpu, answer.scenario, _group(answer)
    assert gpu is not None
    if (s.data_parallel or 1) > 1 or s.draft_model:
        raise Unknown("speed with data-parallel replicas or a draft model is not estimated by this version")
    shares = read_shares(one.weights, answer.job.scheme, tokens)
    overlap = _overlap(answer, passes)
    held = sum(weight_bytes(share.ledger, shares) * share.count for share in answer.shares) / group
    below = weight_bytes(answer.host, {**shares, "embedding": 0.0}) * passes
    on_host = below / _host_bandwidth(answer, gpu) if below and answer.job.engine == "llama.cpp" else 0.0
    brought = below / pcie(gpu) if below and not on_host else 0.0
    memory = (held * passes + cached) / bandwidth(gpu) / overlap + on_host
    compute = flops / peak(gpu, computed_in(answer), answer.job.engine) / overlap
    return Roof(
        bandwidth=memory,
        compute=compute,
        ideal=max(memory, compute),
        link=passes * 2 * one.layers * all_reduce(gpu, group, tokens * one.hidden * 2) + brought,
        launches=one.layers * passes,
        eager=answer.job.engine in EAGER,
    )


def _overlap(answer: Estimate, passes: int) -> float:
    """How many stages work at once: llama.cpp's GPUs take the passes of a prompt one behind the other (`src/llama-context.cpp`:
    pipeline_parallel), at most 4 (`ggml/src/ggml-backend.cpp`: GGML_SCHED_MAX_COPIES), n of them c passes in the time of n + c - 1 parts.
    """
    stages = min(len(answer.shares), 4)
    if answer.job.engine != "llama.cpp" or backend(answer) not in ("cuda", "rocm"):
        return 1.0
    return stages * passes / (stages + passes - 1)


def backend(answer: Estimate) -> str:
    """What llama.cpp is built for: as the scenario says, else the GPU maker's own."""
    own = {"nvidia": "cuda", "amd": "rocm", "apple": "metal", "intel": "sycl"}
    return answer.scenario.backend or own.get(answer.gpu.vendor if answer.gpu else "", "vulkan")


def computed_in(answer: Estimate) -> str:
    """The number format that products are computed in: that of the weights where the engine feeds both sides in it, else 16 bits."""
    name = answer.job.scheme.name.lower()
    if name.startswith("fp8") and answer.job.engine != "transformers":
        return "fp8"
    if name.startswith("w8a8"):
        return "int8"
    if name.startswith("nvfp4"):
        return "fp4"
    return "fp32" if name.startswith("fp32") else answer.job.dtype


def all_reduce(gpu: Gpu, ranks: int, nbytes: int) -> float:
    """Seconds in which `ranks` add up `nbytes`, in a ring: 2 (n − 1) / n of them over the link, and 2 (n − 1) hops."""
    if ranks == 1:
        return 0.0
    start, nvlink, bus = LATENCY
    hop = nvlink if gpu.nvlink else bus
    return start + 2 * (ranks - 1) * (nbytes / ranks / link(gpu) + hop)


def _host_bandwidth(answer: Estimate, gpu: Gpu) -> float:
    """Bytes a second of host memory: that of a processor that shares the GPU's, else the scenario's. Raises Unknown where it has none."""
    if gpu.unified:
        return bandwidth(gpu)
    given = answer.scenario.host_bandwidth
    if given is None:
        raise Unknown("weights lie on the host, whose memory's bandwidth is not known: name it with host_bandwidth, such as 90GB")
    return given
