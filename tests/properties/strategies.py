"""What hypothesis draws from: small configs, models of the catalogue, scenarios, and JSON that is none of these."""

from __future__ import annotations

from functools import cache
from typing import Any

from hypothesis import strategies as st

from vramplan.catalog.models import all_models

ENGINES = ("vllm", "sglang", "llama.cpp", "transformers")
MODELS = (
    "meta-llama/Llama-3.1-8B",
    "google/gemma-3-4b-it",
    "Qwen/Qwen3-30B-A3B",
    "deepseek-ai/DeepSeek-V2-Lite",
    "openai/gpt-oss-20b",
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    "state-spaces/mamba-130m-hf",
    "ai21labs/AI21-Jamba-Mini-1.5",
    "google/gemma-2-9b",
    "mistralai/Mistral-7B-v0.1",
    "openai-community/gpt2",
)
"""Full, sliding, latent, sparse, recurrent and hybrid; each with at least 512 tokens."""


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """One config of each model type of the catalogue."""
    return {str(entry.config["model_type"]): dict(entry.config) for entry in all_models()}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["bf16", "fp8", "Q4_K_M", "8k", "24GiB", "auto"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=10) | st.sampled_from(["k", "v", "rank", "model_type"]), inner, max_size=4)
    ),
    max_leaves=8,
)
"""Anything that JSON can hold, and what a scenario likes now and then."""


@st.composite
def scenarios(draw: st.DrawFn) -> dict[str, Any]:
    """A scenario that is estimated."""
    context = draw(st.integers(16, 512))
    model = draw(st.sampled_from(MODELS))
    return {
        "model": model,
        "engine": draw(st.sampled_from([engine for engine in ENGINES if (engine, "mamba" in model) != ("sglang", True)])),
        "context_length": context,
        "prompt_length": draw(st.integers(1, context)),
        "sequences": draw(st.integers(1, 64)),
        "gpu": draw(st.sampled_from([None, "rtx-4090", "h100-sxm-80gb", "mi300x"])),
        "max_batched_tokens": draw(st.sampled_from([None, 256, 2048])),
        "attention": draw(st.sampled_from([None, "eager", "flash"])),
        "flash_attention": draw(st.sampled_from([None, False])),
    }


@st.composite
def damaged_configs(draw: st.DrawFn) -> dict[str, Any]:
    """A config of the catalogue, in which some keys (nested ones too) are gone or have another value."""
    kinds = catalogue()
    config = dict(kinds[draw(st.sampled_from(sorted(kinds)))])
    numbers = st.sampled_from([0, 1, 2, 3, 7, -1, 2**31, 2**63, 10**30, 0.5, 1e308, True]) | st.integers()
    for _ in range(draw(st.integers(1, 4))):
        at = config
        nested = [key for key, value in at.items() if isinstance(value, dict)]
        if nested and draw(st.booleans()):
            key = draw(st.sampled_from(nested))
            at[key] = at = dict(at[key])
        if not at:
            continue
        key = draw(st.sampled_from(sorted(at)))
        if key == "model_type" and at is config:
            continue
        if draw(st.booleans()) and isinstance(at[key], list) and at[key]:
            at[key] = draw(
                st.lists(st.sampled_from([str(entry) if isinstance(entry, dict) else entry for entry in at[key]]) | json_values, max_size=6)
            )
        elif draw(st.integers(0, 4)) == 0:
            del at[key]
        else:
            at[key] = draw(numbers | json_values)
    return config
