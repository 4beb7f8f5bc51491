"""Every case that llama.cpp's own planner answered (data/llama_cpp, made by scripts/llama_cpp_matrix.py), against ours, device by device.

Weights and caches are equal to the MiB. Compute buffers are within 2 % in 95 of 100 of the models that only attend; those that also keep
states, share caches or mask by an indexer are told apart below, with what their graph has that ours does not. What is further off among
those that attend: Command R, Phi-3, Falcon and Hunyuan add branches and norms in another order than their checkpoints' own code, which the
tape follows (up to 9 %, Falcon 11 %); DeepSeek-V2's experts and shared experts lie in another order over several GPUs (12 %); Llama 4
weighs tokens before its experts, not after (5 %); MiMo-V2 and Phi-3.5-MoE in one case each (3 and 7 %), Qwen1.5-MoE in one (6 %).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from vramplan import estimate
from vramplan.units import MiB

DATA = Path(__file__).parent.parent / "data" / "llama_cpp" / "cases.jsonl"
CASES: list[dict[str, Any]] = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
FIGURES = ("arch", "model", "devices", "host", "version")

STATES = (
    "falcon-h1", "granitehybrid", "jamba", "lfm2", "lfm2moe", "mamba", "nemotron_h", "nemotron_h_moe", "qwen35", "qwen35moe", "qwen3next",
)  # fmt: skip
"""Their layers keep states: copies of states and of what a scan reads are placed by llama.cpp in an order that the tape does not have."""
OTHERS = ("gemma4", "glm-dsa")
"""Gemma 4's inputs for each layer are cut into layers at the start; GLM-5's indexer makes a mask of its own for each layer."""


class Buffer(NamedTuple):
    """A device's compute buffer, in bytes."""

    arch: str
    host: bool
    ours: int
    theirs: int

    @property
    def error(self) -> float:
        return self.ours / self.theirs - 1 if self.theirs else 0.0


def devices(case: dict[str, Any]) -> Iterator[tuple[str, list[int], list[int]]]:
    """Each device's name, and its weights, cache and compute buffer: ours, and llama.cpp's."""
    answer = estimate(engine="llama.cpp", gpu_memory="800GiB", **{k: v for k, v in case.items() if k not in ("arch", *FIGURES[2:])})
    found = {f"GPU {share.rank}": share.ledger for share in answer.shares} | {"host": answer.host}
    theirs = {f"GPU {i}": figures for i, figures in enumerate(case["devices"])} | {"host": case["host"]}
    assert found.keys() == theirs.keys()
    for name, ledger in found.items():
        yield name, [ledger.total(part) for part in ("weights", "kv cache", "compute buffer")], theirs[name]


@cache
def buffers(model: str) -> tuple[Buffer, ...]:
    """The compute buffers of all cases of a model; weights and caches are compared on the way."""
    found = []
    for case in CASES:
        if case["model"] != model:
            continue
        for name, ours, theirs in devices(case):
            for part, a, b in zip(("weights", "cache"), ours, theirs, strict=False):
                assert abs(a - b) < MiB, f"{part} on {name}: {a / MiB:,.2f} MiB, llama.cpp {b / MiB:,.2f}: {case}"
            found.append(Buffer(case["arch"], name == "host", ours[2], theirs[2]))
    return tuple(found)


MODELS = list(dict.fromkeys(case["model"] for case in CASES))


@pytest.mark.parametrize("model", MODELS)
def test_weights_and_caches_are_equal(model: str) -> None:
    assert buffers(model)


def share(*, host: bool, archs: tuple[str, ...], inside: bool) -> float:
    """The share of buffers within 2 %, of the architectures inside or outside of `archs`."""
    errors = [b.error for model in MODELS for b in buffers(model) if b.host == host and (b.arch in archs) == inside]
    return sum(abs(error) <= 0.02 for error in errors) / len(errors)


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 400
    assert len({case["arch"] for case in CASES}) >= 50
    assert max(case.get("gpu_count", 1) for case in CASES) == 4


def test_compute_buffers_of_models_that_attend() -> None:
    assert share(host=False, archs=(*STATES, *OTHERS), inside=False) >= 0.96
    assert share(host=True, archs=(*STATES, *OTHERS), inside=False) >= 0.97


def test_compute_buffers_of_all() -> None:
    """What stands here may only grow."""
    assert share(host=False, archs=(), inside=False) >= 0.84
    assert share(host=True, archs=(), inside=False) >= 0.94
