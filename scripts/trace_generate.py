"""Trace transformers' `generate` of real models (extra `trace`) for a matrix of scenarios, and write the peaks of its phases.

`python scripts/trace_generate.py data/traced/generate.jsonl` appends the cases that the file lacks (about ten minutes on one core), each in
a process of its own. Quantised caches need optimum-quanto 0.2.7 and hqq 0.2.8.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from traced_rows import append

PLAIN = {"sequences": 1, "prompt_length": 1024, "output_length": 512}
SHORT = {"sequences": 8, "prompt_length": 16, "output_length": 2032}
LONG = {"sequences": 1, "prompt_length": 8192, "output_length": 256}
FAMILIES = (
    "openai-community/gpt2",
    "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.1-8B",
    "mistralai/Mistral-7B-v0.1",
    "Qwen/Qwen2.5-7B",
    "Qwen/Qwen3-0.6B",
    "google/gemma-2b",
    "google/gemma-2-2b",
    "google/gemma-3-1b-it",
    "microsoft/Phi-3-mini-4k-instruct",
    "allenai/OLMo-2-0425-1B",
    "EleutherAI/pythia-1b",
    "tiiuae/falcon-7b",
    "bigcode/starcoder2-3b",
    "allenai/OLMoE-1B-7B-0924",
    "Qwen/Qwen3-30B-A3B",
    "openai/gpt-oss-20b",
    "deepseek-ai/DeepSeek-V2-Lite",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2",
)
SMALL = "meta-llama/Llama-3.2-1B"
EAGER = ("google/gemma-2-2b", "openai/gpt-oss-20b")
"""transformers runs them with eager attention only (`_supports_sdpa = False`)."""
MORE: tuple[dict[str, Any], ...] = (
    *({"model": SMALL, **LONG, "cache_implementation": kind} for kind in ("static", "offloaded", "offloaded-static", "quanto-int4")),
    *({"model": SMALL, **SHORT, "cache_implementation": kind} for kind in ("static", "offloaded", "offloaded-static", "quanto-int2")),
    *({"model": SMALL, **LONG, "cache_implementation": kind} for kind in ("hqq-int4", "hqq-int3", "fp8")),
    *({"model": SMALL, **SHORT, "cache_implementation": kind} for kind in ("hqq-int8", "hqq-int2", "fp8")),
    {"model": "EleutherAI/pythia-1b", **PLAIN, "sequences": 8, "cache_implementation": "hqq-int4"},
    {"model": "Qwen/Qwen2.5-7B", **LONG, "sequences": 4, "cache_implementation": "hqq-int1"},
    {"model": "meta-llama/Llama-2-7b-hf", **PLAIN, "sequences": 8, "cache_implementation": "hqq-int4"},
    {"model": "meta-llama/Llama-3.1-8B", **LONG, "draft_model": SMALL},
    {"model": "Qwen/Qwen3-8B", **PLAIN, "draft_model": "Qwen/Qwen3-0.6B"},
    {"model": SMALL, **LONG, "attention": "eager"},
    {"model": SMALL, **LONG, "sequences": 4, "weights": "fp32"},
    {"model": SMALL, **PLAIN, "sequences": 16},
    {"model": SMALL, **PLAIN, "num_beams": 4},
    {"model": SMALL, **SHORT, "num_beams": 5},
    {"model": SMALL, **PLAIN, "sequences": 4, "num_beams": 4, "cache_implementation": "static"},
    {"model": "google/gemma-3-1b-it", **LONG, "cache_implementation": "static"},
    {"model": "google/gemma-3-1b-it", **LONG, "cache_implementation": "offloaded"},
    {"model": "google/gemma-3-1b-it", **SHORT, "num_beams": 4},
    {"model": "mistralai/Mistral-7B-v0.1", **LONG},
    {"model": "mistralai/Mistral-7B-v0.1", **SHORT, "cache_implementation": "offloaded"},
    {"model": "Qwen/Qwen2.5-7B", **LONG, "sequences": 8},
    {"model": "Qwen/Qwen2.5-7B", **LONG, "sequences": 4, "cache_implementation": "quanto-int4"},
    {"model": "Qwen/Qwen3-0.6B", **SHORT, "num_beams": 8},
    {"model": "Qwen/Qwen3-0.6B", **PLAIN, "sequences": 64},
    {"model": "Qwen/Qwen3-30B-A3B", **SHORT, "sequences": 32},
    {"model": "allenai/OLMoE-1B-7B-0924", **PLAIN, "num_beams": 4},
    {"model": "openai/gpt-oss-20b", **SHORT},
    {"model": "deepseek-ai/DeepSeek-V2-Lite", **SHORT, "attention": "eager"},
    {"model": "meta-llama/Llama-3.1-8B", **LONG, "weights": "nf4"},
    {"model": "meta-llama/Llama-3.1-8B", **SHORT, "weights": "int8"},
    {"model": "meta-llama/Llama-3.1-8B", **LONG, "gpu": "h100-sxm-80gb", "sequences": 2},
    {"model": "meta-llama/Llama-3.1-8B", **LONG, "gpu": "t4", "weights": "fp16"},
)


def cases() -> Iterator[dict[str, Any]]:
    """Every scenario of the matrix."""
    for model in FAMILIES:
        for lengths in (PLAIN, SHORT) if model != "openai-community/gpt2" else (SHORT | {"output_length": 1008},):
            yield {"model": model, **_attention(model), **lengths}
    yield from ({**_attention(case["model"]), **case} for case in MORE)


def _attention(model: str) -> dict[str, str]:
    return {"engine": "transformers", "weights": "bf16", "attention": "eager" if model in EAGER else "sdpa"}


def trace(asked: dict[str, Any]) -> dict[str, Any]:
    """The peaks of one scenario."""
    from vramplan.scenario import scenario
    from vramplan.trace.generate import trace_generate

    start, end = trace_generate(scenario(asked))
    prefill, first, decode = start.peak_of(moment="prefill"), start.peak_of(moment="first"), end.peak_of(moment="decode")
    largest = max(prefill, first, decode, key=lambda peak: peak.nbytes)
    return {
        "peak": largest.nbytes,
        "prefill": prefill.nbytes,
        "first": first.nbytes,
        "decode": decode.nbytes,
        "op": largest.op,
        "where": largest.module,
        "categories": dict(largest.categories),
        "kernels": dict(start.kernels),
    }


def versions(_: dict[str, Any]) -> dict[str, str]:
    """What makes the figures."""
    return {name: version(name) for name in ("torch", "transformers", "bitsandbytes")}


if __name__ == "__main__":
    import torch  # noqa: F401  so that children need not import it again
    import transformers  # noqa: F401

    append(Path(sys.argv[1]), cases(), trace, versions)
