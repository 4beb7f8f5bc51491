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

EAGER = ("google/gemma-2-2b",)
"""transformers runs them with eager attention only (`_supports_sdpa = False`)."""

EXPERTS = ("allenai/OLMoE-1B-7B-0924", "Qwen/Qwen1.5-MoE-A2.7B")

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


def left_out(model: str, recipe: dict[str, Any]) -> bool:
    """Steps that the estimate refuses or the trace cannot make as they are: longer than GPT-2's context; GPT-2's Conv1D in 4 bits, for
    which the trace has no stand-in; adapters over mixtures of experts.
    """
    if model == "openai-community/gpt2":
        return recipe["sequence_length"] > 1024 or recipe["method"] == "qlora"
    return model in EXPERTS and (recipe["method"] != "full" or recipe["precision"] == "bf16-mixed")


def cases() -> Iterator[dict[str, Any]]:
    """Every scenario of the matrix."""
    for model in MODELS:
        for recipe in RECIPES:
            if left_out(model, recipe):
                continue
            attention = "eager" if model in EAGER else "sdpa"
            yield {"model": model, "task": "train", "engine": "transformers", "optimizer": "adamw-fused", "attention": attention, **recipe}


def run(asked: dict[str, Any], pipe: Any) -> None:
    """Trace one scenario and send its figures."""
    from vramplan.scenario import scenario
    from vramplan.trace.step import trace_scenario

    start = time.perf_counter()
    try:
        found = trace_scenario(scenario(asked), loop="trainer")
        steady = found.steady
        figures = {
            "peak": steady.nbytes,
            "moment": steady.moment,
            "op": steady.op,
            "where": steady.module,
            "categories": steady.categories,
            "reserved": found.reserved.max_reserved,
            "reserved_expandable": found.reserved_expandable.max_reserved,
            "seconds": round(time.perf_counter() - start, 1),
        }
        pipe.send({"scenario": asked, **figures})
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
