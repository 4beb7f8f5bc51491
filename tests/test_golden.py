"""What the command line prints, to the character: tests/golden/, reviewed as diffs, written anew by `pytest --update-golden`."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest

from harness import GOLDEN, Golden, Run

TEXT = {
    "llama-vllm-fits": "estimate meta-llama/Llama-3.1-8B --gpu rtx-4090 --context 8192",
    "llama-vllm-explain": "estimate meta-llama/Llama-3.1-8B --gpu rtx-4090 --context 8192 --explain",
    "llama-vllm-too-small": "estimate meta-llama/Llama-3.1-70B --gpu h100-sxm-80gb --context 8192",
    "llama-no-gpu": "estimate meta-llama/Llama-3.1-8B --context 8192",
    "llama-by-hand": "estimate --layers 32 --hidden 4096 --heads 32 --kv-heads 8 --ffn 14336 --vocab 128256 --gpu t4 --context 4096",
    "gpt-oss-vllm": "estimate openai/gpt-oss-20b --gpu rtx-4080 --context 16k --engine-version 0.19.0",
    "deepseek-v3-vllm": "estimate deepseek-ai/DeepSeek-V3 --gpu mi300x --context 32k",
    "qwen3-moe-llama-cpp": "estimate Qwen/Qwen3-30B-A3B --weights Q4_K_M --gpu rtx-3090 --context 32k --kv-dtype q8_0",
    "gemma3-llama-cpp-explain": "estimate google/gemma-3-27b-it --weights Q4_K_M --gpu 'm3 max 64gb' --context 8192 --batch 2 --explain",
    "jamba-llama-cpp": "estimate ai21labs/AI21-Jamba-Mini-1.5 --weights Q4_K_M --gpu a100-80gb --context 65536 --no-flash-attention",
    "qwen3-next-vllm": "estimate Qwen/Qwen3-Next-80B-A3B-Instruct --weights fp8 --gpu h200 --context 131072",
    "qwen2.5-awq-transformers": "estimate Qwen/Qwen2.5-7B-Instruct --engine transformers --weights awq --gpu rtx-3060 --context 8k",
    "llama-nf4-transformers-explain": "estimate 'llama 3.1 8b' --engine transformers --weights nf4 --gpu-memory 8GB --explain",
    "bert-transformers": "estimate google-bert/bert-base-uncased --engine transformers --context 512 --batch 32 --gpu t4",
    "mamba-transformers": "estimate state-spaces/mamba-130m-hf --engine transformers --context 2048",
    "compare-gpus": "compare google/gemma-3-27b-it --gpu rtx-4090 --gpu l40s --gpu h100 --context 8192",
    "compare-weights-and-contexts": "estimate meta-llama/Llama-3.1-8B --weights bf16 --weights awq --context 4096 --context 32k --gpu l4",
    "inspect-deepseek-v3": "inspect deepseek-ai/DeepSeek-V3",
    "inspect-qwen3-next": "inspect Qwen/Qwen3-Next-80B-A3B-Instruct",
    "inspect-gpt2-tensors": "inspect openai-community/gpt2 --tensors",
    "models": "models mistral small --limit 5",
    "models-nothing": "models qqqqqq",
    "gpus": "gpus rtx 50",
    "gpus-nothing": "gpus qqqqqq",
}
JSON = {
    "llama-vllm": "estimate meta-llama/Llama-3.1-8B --gpu rtx-4090 --context 8192 --json",
    "gemma3-llama-cpp": "estimate google/gemma-3-27b-it --weights Q4_K_M --gpu rtx-4090 --context 8192 --json",
    "qwen3-moe-transformers": "estimate Qwen/Qwen3-30B-A3B --engine transformers --context 4096 --json",
}
ERRORS = {
    "unknown-gpu": "estimate meta-llama/Llama-3.1-8B --gpu rtx-4091",
    "ambiguous-gpu": "estimate meta-llama/Llama-3.1-8B --gpu 4060ti",
    "unknown-short-name": "estimate 'lama 3.1 8b'",
    "unknown-weights": "estimate meta-llama/Llama-3.1-8B --weights Q4_KM",
    "unknown-engine": "estimate meta-llama/Llama-3.1-8B --engine lama.cpp",
    "unknown-option": "estimate meta-llama/Llama-3.1-8B --contxt 8192",
    "unknown-command": "estimat meta-llama/Llama-3.1-8B",
    "negative-context": "estimate meta-llama/Llama-3.1-8B --context -8192",
    "context-too-long": "estimate meta-llama/Llama-3.1-8B --context 200k",
    "size-without-unit": "estimate meta-llama/Llama-3.1-8B --gpu-memory 24",
    "two-gpus": "estimate meta-llama/Llama-3.1-8B --gpu-count 2 --context-parallel 2",
    "no-model": "estimate",
    "compare-one": "compare meta-llama/Llama-3.1-8B --gpu rtx-4090",
    "layers-and-model": "estimate meta-llama/Llama-3.1-8B --layers 32",
    "no-file": "estimate nothing.gguf",
}


@pytest.mark.parametrize("name", TEXT)
def test_text(name: str, run: Run, golden: Golden) -> None:
    done = run(*shlex.split(TEXT[name]))
    assert (done.status, done.err) == (0, "")
    golden(f"{name}.txt", f"$ vramplan {TEXT[name]}\n{done.out}")


def trimmed(data: dict[str, Any]) -> dict[str, Any]:
    """The answer with each item on a line, and without its words, which the text of --explain shows."""
    gpus = [
        {**gpu, "items": [f"{' / '.join(item['path'])}: {item['nbytes']} at {', '.join(item['alive'])}" for item in gpu["items"]]}
        for gpu in data["gpus"]
    ]
    return {**data, "gpus": gpus}


@pytest.mark.parametrize("name", JSON)
def test_json(name: str, run: Run, golden: Golden) -> None:
    done = run(*shlex.split(JSON[name]))
    assert (done.status, done.err) == (0, "")
    golden(f"{name}.json", json.dumps(trimmed(json.loads(done.out)), indent=1, ensure_ascii=False) + "\n")


def test_errors(run: Run, golden: Golden) -> None:
    lines = []
    for name, words in ERRORS.items():
        done = run(*shlex.split(words))
        assert (done.status, done.out) == (2, ""), name
        lines.append(f"$ vramplan {words}\n{done.err}")
    golden("errors.txt", "\n".join(lines))


def test_no_file_is_left_over() -> None:
    wanted = {f"{name}.txt" for name in TEXT} | {f"{name}.json" for name in JSON} | {"errors.txt"}
    assert {path.name for path in GOLDEN.iterdir()} == wanted
