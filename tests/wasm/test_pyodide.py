"""The wheel in Pyodide, under Node: the same answers as here, to the byte.

`PYODIDE` names the folder of the npm package (`npm install pyodide`); without it, or without Node, there is nothing to run it with.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vramplan import estimate

ROOT = Path(__file__).parents[2]
SCENARIOS = [
    {"model": "meta-llama/Llama-3.1-8B", "task": "infer", "gpu": "rtx-4090", "context_length": 8192},
    {
        "model": "Qwen/Qwen3-30B-A3B",
        "task": "infer",
        "engine": "llama.cpp",
        "weights": "Q4_K_M",
        "gpu": "rtx-3090",
        "context_length": 32768,
    },
    {"model": "deepseek-ai/DeepSeek-V3", "task": "infer", "gpu": "h200", "gpu_count": 8, "tensor_parallel": 8, "context_length": 32768},
    {"model": "google/gemma-3-27b-it", "task": "train", "method": "lora", "gpu": "h100-sxm-80gb"},
    {"model": "meta-llama/Llama-3.1-8B", "task": "train", "method": "qlora", "objective": "dpo", "gpu": "rtx-4090"},
    {"model": "meta-llama/Llama-3.1-8B", "task": "train", "engine": "torchtitan", "sharding": "fsdp", "gpu": "h100", "gpu_count": 64},
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("PYODIDE" not in os.environ, reason="PYODIDE does not name the folder of the npm package"),
    pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node"),
]


def test_the_same_answers(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(pip, check=True)
    (wheel,) = tmp_path.glob("vramplan-*.whl")
    node = ["node", str(Path(__file__).with_name("answers.mjs")), os.environ["PYODIDE"], str(wheel)]
    run = subprocess.run(node, input=json.dumps(SCENARIOS), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    here = [estimate(**scenario).to_dict() for scenario in SCENARIOS]
    for there, answer in zip(json.loads(run.stdout), here, strict=True):
        assert there == json.loads(json.dumps(answer))
