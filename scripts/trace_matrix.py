"""Trace training steps of real models (extra `trace`) for a matrix of scenarios, and write their peaks: the referee of the estimate.

`python scripts/trace_matrix.py data/traced/steps.jsonl` appends the cases that the file lacks (about twenty minutes on one core), each in a
process of its own. The steps are those of transformers' Trainer: two of them, the second is the steady one.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODELS = (
    "openai-community/gpt2",
    "meta-llama/Llama-3.2-1B",
    "meta-llama/Llama-3.1-8B",
    "mistralai/Mistral-7B-Instruct-v0.3",
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen2.5-7B",
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-8B",
    "google/gemma-2b",
    "google/gemma-2-2b",
    "google/gemma-3-1b-it",
    "microsoft/Phi-3-mini-4k-instruct",
    "allenai/OLMo-2-0425-1B",
    "ibm-granite/granite-3.3-2b-instruct",
    "HuggingFaceTB/SmolLM3-3B",
    "EleutherAI/pythia-1b",
    "bigcode/starcoder2-3b",
    "stabilityai/stablelm-zephyr-3b",
    "CohereLabs/tiny-aya-base",
    "allenai/OLMoE-1B-7B-0924",
    "Qwen/Qwen1.5-MoE-A2.7B",
)
"""Small ones mostly: a step of an 8B model takes five seconds more."""

EAGER = ("google/gemma-2-2b", "bigscience/bloomz-560m")
"""transformers runs them with eager attention only (`_supports_sdpa = False`)."""

LORA = {"rank": 16, "targets": "all-linear"}
RECIPES: tuple[dict[str, Any], ...] = (
    {"method": "full", "precision": "bf16", "micro_batch": 1, "sequence_length": 1024},
    {"method": "full", "precision": "bf16", "micro_batch": 2, "sequence_length": 2048, "checkpointing": "full"},
    {"method": "full", "precision": "bf16-mixed", "micro_batch": 1, "sequence_length": 512, "checkpointing": "full"},
    {"method": "full", "precision": "bf16", "micro_batch": 1, "sequence_length": 256, "optimizer": "adamw", "checkpointing": "full"},
    {"method": "full", "precision": "bf16", "micro_batch": 1, "sequence_length": 512, "attention": "eager", "optimizer": "sgd"},
    {"method": "lora", "precision": "bf16", "micro_batch": 1, "sequence_length": 1024, "lora": LORA},
    {"method": "lora", "precision": "bf16", "micro_batch": 4, "sequence_length": 1024, "lora": LORA, "checkpointing": "full"},
    {
        "method": "lora",
        "precision": "bf16",
        "micro_batch": 1,
        "sequence_length": 512,
        "lora": {"rank": 64, "targets": "all-linear", "dropout": 0.05, "dtype": "bf16"},
        "gradient_accumulation": 2,
    },
    {
        "method": "qlora",
        "precision": "bf16",
        "quantization": "nf4",
        "double_quant": True,
        "micro_batch": 2,
        "sequence_length": 1024,
        "lora": LORA,
        "checkpointing": "full",
    },
)


SEERS: tuple[dict[str, Any], ...] = (
    {"model": "Qwen/Qwen2-VL-2B-Instruct", "images": 2, "image_size": "672x448", "micro_batch": 1, "sequence_length": 1024},
    {"model": "Qwen/Qwen2.5-VL-3B-Instruct", "images": 1, "image_size": "448x336", "micro_batch": 1, "sequence_length": 1024},
    {"model": "Qwen/Qwen3-VL-2B-Instruct", "images": 2, "image_size": "800x600", "micro_batch": 1, "sequence_length": 1536},
    {"model": "google/gemma-3-4b-it", "images": 2, "micro_batch": 2, "sequence_length": 1024},
    {"model": "google/paligemma-3b-pt-224", "images": 1, "micro_batch": 4, "sequence_length": 512},
    {"model": "llava-hf/llava-1.5-7b-hf", "images": 1, "micro_batch": 2, "sequence_length": 1024},
    {"model": "mistral-community/pixtral-12b", "images": 1, "image_size": "640x480", "micro_batch": 1, "sequence_length": 2048},
    {"model": "meta-llama/Llama-3.2-11B-Vision-Instruct", "images": 1, "micro_batch": 1, "sequence_length": 512},
)
"""Vision-language models, with images among the tokens."""
SEEN: tuple[dict[str, Any], ...] = (
    {"method": "full", "precision": "bf16", "tower": "trained"},
    {"method": "full", "precision": "bf16", "tower": "frozen"},
    {"method": "full", "precision": "bf16", "tower": "projector", "checkpointing": "full"},
    {"method": "full", "precision": "bf16-mixed", "tower": "trained", "checkpointing": "full"},
    {"method": "lora", "precision": "bf16", "tower": "trained", "lora": LORA},
    {"method": "lora", "precision": "bf16", "tower": "frozen", "lora": LORA, "checkpointing": "full"},
    {
        "method": "qlora",
        "precision": "bf16",
        "quantization": "nf4",
        "double_quant": True,
        "tower": "trained",
        "lora": LORA,
        "checkpointing": "full",
    },
)


def _lora(**keys: Any) -> dict[str, Any]:
    return {"lora": {**LORA, **keys}}


ATTENTION, FULLY, KBIT = _lora(targets="attention"), {"checkpointing": "full"}, {"method": "qlora", "kbit_preparation": True}
INT8, MIXED = {"quantization": "int8"}, {"precision": "bf16-mixed"}
ADAPTED: dict[str, tuple[dict[str, Any], ...]] = {
    "meta-llama/Llama-3.2-1B": (
        {"method": "rslora"},
        {"method": "dora"},
        {"method": "dora", **FULLY},
        {"method": "dora", **_lora(dropout=0.05)},
        {"method": "dora", **MIXED},
        {"method": "dora", "quantization": "nf4", "double_quant": True, **FULLY},
        {"method": "dora", "quantization": "nf4", **_lora(dropout=0.05)},
        {"method": "dora", **INT8},
        {"method": "qlora", **INT8},
        {"method": "qlora", **INT8, **FULLY},
        {"method": "qlora", **INT8, "precision": "fp16", **_lora(dtype="fp16")},
        {**KBIT, **INT8},
        {**KBIT, **INT8, **MIXED, "checkpointing": "none"},
        KBIT,
        {**KBIT, "checkpointing": "none"},
        {**KBIT, **MIXED},
        {**KBIT, **MIXED, "checkpointing": "none", **_lora(dropout=0.05)},
        {**KBIT, **MIXED, **_lora(dtype="bf16")},
        {"method": "qlora", **MIXED},
        {"method": "qlora", "gradient_accumulation": 2},
        {"method": "lora", **MIXED},
        {"method": "lora", **MIXED, **_lora(dtype="bf16", dropout=0.05)},
        {"method": "lora", "precision": "fp32"},
        {"method": "lora", "trained_modules": ["embed_tokens", "lm_head"]},
        {"method": "qlora", "trained_modules": ["lm_head"], **FULLY},
        {"method": "lora", **_lora(targets=["embed_tokens", "q_proj", "v_proj"])},
        {"method": "lora", **_lora(targets=["lm_head", "q_proj"]), **FULLY},
        {"method": "full", "frozen_modules": ["embed_tokens"]},
        {"method": "full", "frozen_modules": ["mlp", "embed_tokens"]},
        {"method": "full", "frozen_modules": ["self_attn"], **FULLY},
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": ({"method": "qlora", "quantization": "fp4"}, {**KBIT, **MIXED}, {"method": "dora", **FULLY}),
    "openai-community/gpt2": ({"method": "dora"}, {"method": "qlora", **INT8}, {**KBIT, **MIXED}),
    "google/gemma-2-2b": ({**KBIT, "sequence_length": 512}, {"method": "dora", **ATTENTION, "sequence_length": 512}),
    "google/gemma-3-1b-it": (KBIT, {"method": "lora", **ATTENTION, "sequence_length": 2048}),
    "tiiuae/falcon-7b": ({"method": "qlora", **FULLY},),
    "allenai/OLMoE-1B-7B-0924": ({"method": "lora", **ATTENTION}, {"method": "lora", **MIXED, "sequence_length": 512}, KBIT),
    "Qwen/Qwen1.5-MoE-A2.7B": ({"method": "dora", **FULLY}, {"method": "qlora", **INT8}),
    "deepseek-ai/DeepSeek-V2-Lite": ({"method": "lora", **ATTENTION}, {"method": "qlora", **FULLY}),
    "mistralai/Mixtral-8x7B-v0.1": ({"method": "qlora", **ATTENTION, **FULLY}, {"method": "lora", **FULLY}, {"method": "lora"}),
    "Qwen/Qwen3-30B-A3B": ({"method": "qlora", **ATTENTION, **FULLY}, {"method": "lora", **FULLY}),
}
"""Adapters of all kinds, frozen parts, and what adapters take over experts, beside 1 × 1,024 tokens."""

PLAIN = (
    *("swiss-ai/Apertus-v1.1-4B-Instruct", "arcee-ai/AFM-4.5B", "bigscience/bloomz-560m", "CohereLabs/aya-expanse-8b"),
    *("baidu/ERNIE-4.5-0.3B-Paddle", "LGAI-EXAONE/EXAONE-4.0-1.2B", "allenai/Flex-reddit-2x7B-1T", "zai-org/GLM-4-9B-0414"),
    *("zai-org/GLM-4.7-Flash", "bigcode/tiny_starcoder_py", "ibm-granite/granite-3.0-1b-a400m-instruct", "tencent/Hunyuan-0.5B-Pretrain"),
    *("LiquidAI/LFM2.5-230M", "LiquidAI/LFM2.5-8B-A1B", "OpenLLM-France/Luciole-1B-Base", "allenai/OLMo-1B-hf"),
    *("allenai/Olmo-3-7B-Instruct", "facebook/opt-125m", "microsoft/phi-2", "tencent/Youtu-LLM-2B", "kyutai/helium-1-preview-2b"),
)
"""A model of each family that is in none of the tables above: fully and with adapters, 1 × 512 tokens, nothing checkpointed."""

MIXER, FALCON_H1 = _lora(targets=["in_proj"]), _lora(targets=["in_proj", "q_proj", "down_proj"])
WITHOUT_SDPA = {"attention": "eager"}
RECURRENT: dict[str, tuple[dict[str, Any], ...]] = {
    "ML-Intern-lab/Qwen-Image-2.1-PE-T2I-Pocket-0.8B": (
        {"method": "full"},
        {"method": "full", **FULLY},
        {"method": "full", **MIXED},
        {"method": "lora"},
        {"method": "lora", **FULLY},
        {"method": "qlora", "quantization": "nf4", "double_quant": True},
        {"method": "lora", "sequence_length": 1000},
    ),
    "Qwen/Qwen3-Coder-Next": ({"method": "full"}, {"method": "lora"}),
    "Qwen/Qwen3.5-0.8B": (
        {"method": "full", "images": 1, "image_size": "448x336"},
        {"method": "lora", "images": 1, "image_size": "448x336"},
    ),
    "tiiuae/Falcon-H1-0.5B-Instruct": (
        {"method": "full"},
        {"method": "full", **FULLY},
        {"method": "full", **MIXED},
        {"method": "lora", **FALCON_H1},
    ),
    "ibm-granite/granite-4.0-tiny-preview": ({"method": "full"}, {"method": "lora"}),
    "nvidia/NVIDIA-Nemotron-Nano-9B-v2": ({"method": "full"}, {"method": "lora", **MIXER}),
    "Johnblick187/Mamba-Codestral-7B-abliterated": ({"method": "full", **WITHOUT_SDPA}, {"method": "lora", **MIXER, **WITHOUT_SDPA}),
    "state-spaces/mamba-130m-hf": ({"method": "full", "sequence_length": 64, **WITHOUT_SDPA},),
}
"""Hybrids and recurrent models, 1 × 512 tokens, with delta rules and scans of torch's own operators."""


def left_out(model: str, recipe: dict[str, Any]) -> bool:
    """Steps that PEFT refuses (dropout before adapters on experts' stacked matrices), and those longer than GPT-2's context."""
    if model == "openai-community/gpt2":
        return recipe["sequence_length"] > 1024
    return model == "allenai/OLMoE-1B-7B-0924" and "dropout" in recipe.get("lora", {})


def cases() -> Iterator[dict[str, Any]]:
    """Every scenario of the matrix."""
    for model in MODELS:
        for recipe in RECIPES:
            if left_out(model, recipe):
                continue
            attention = "eager" if model in EAGER else "sdpa"
            yield {"model": model, "task": "train", "engine": "transformers", "optimizer": "adamw-fused", "attention": attention, **recipe}
    for model, recipes in ADAPTED.items():
        attention = "eager" if model in EAGER else "sdpa"
        common = {"model": model, "task": "train", "engine": "transformers", "optimizer": "adamw-fused", "attention": attention}
        for recipe in recipes:
            adapter = {} if recipe["method"] == "full" else _lora()
            yield {**common, "precision": "bf16", "micro_batch": 1, "sequence_length": 1024, **adapter, **recipe}
    common = {"task": "train", "engine": "transformers", "optimizer": "adamw-fused", "precision": "bf16", "micro_batch": 1}
    for model in PLAIN:
        attention = "eager" if model in EAGER else "sdpa"
        for recipe in ({"method": "full"}, {"method": "lora", **_lora()}):
            yield {"model": model, **common, "attention": attention, "sequence_length": 512, **recipe}
    for model, recipes in RECURRENT.items():
        for recipe in recipes:
            adapter = {} if recipe["method"] == "full" else _lora()
            yield {"model": model, **common, "attention": "sdpa", "sequence_length": 512, **adapter, **recipe}
    for seer in SEERS:
        for recipe in SEEN:
            yield {"task": "train", "engine": "transformers", "optimizer": "adamw-fused", "attention": "sdpa", **seer, **recipe}


def figures(asked: dict[str, Any]) -> dict[str, Any]:
    """Trace one scenario: its peak in the second step, which is the steady one, and what the allocator reserves in both."""
    from vramplan.scenario import scenario
    from vramplan.trace.step import trace_scenario

    found = trace_scenario(scenario(asked), loop="trainer")
    steady = found.steady
    return {
        "peak": steady.nbytes,
        "moment": steady.moment,
        "op": steady.op,
        "where": steady.module,
        "categories": steady.categories,
        "reserved": found.reserved.max_reserved,
        "reserved_expandable": found.reserved_expandable.max_reserved,
    }


def run(asked: dict[str, Any], pipe: Any) -> None:
    """Send the figures of one scenario, or what went wrong."""
    start = time.perf_counter()
    try:
        pipe.send({"scenario": asked, **figures(asked), "seconds": round(time.perf_counter() - start, 1)})
    except Exception as error:
        pipe.send({"scenario": asked, "failed": f"{type(error).__name__}: {error}"[:300]})


def versions() -> dict[str, str]:
    """What made the figures."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")}


def main() -> None:
    """Trace what the file lacks."""
    import torch  # noqa: F401  so that children need not import it again
    import transformers  # noqa: F401

    path = Path(sys.argv[1])
    done = {json.dumps(json.loads(line)["scenario"], sort_keys=True) for line in path.read_text().splitlines()} if path.exists() else set()
    context = multiprocessing.get_context("fork")
    with path.open("a") as file:
        for asked in cases():
            if json.dumps(asked, sort_keys=True) in done:
                continue
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=run, args=(asked, sender))
            child.start()
            row = receiver.recv() if receiver.poll(180) else {"scenario": asked, "failed": "no answer in 180 s"}
            child.kill()
            child.join()
            file.write(json.dumps({**row, "versions": versions()}, ensure_ascii=False) + "\n")
            file.flush()
            name = f"{asked['model']} {asked['method']} {asked['precision']} {asked['micro_batch']} × {asked['sequence_length']}"
            print(name, row.get("failed") or f"{row['peak'] / 2**30:.3f} GiB at {row['moment']}, {row['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
