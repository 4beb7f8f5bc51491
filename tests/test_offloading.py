"""Offloading without checkpointing, judged by TRL's own class: `data/traced/offload.jsonl`, made by `scripts/trace_offload.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vramplan import BadInput, Unknown, estimate, scenario
from vramplan.dim import Dim
from vramplan.offloading import offload
from vramplan.sweep import sweep
from vramplan.tape import Tape

ROWS = [json.loads(line) for line in (Path(__file__).parent.parent / "data" / "traced" / "offload.jsonl").read_text().splitlines()]
BETWEEN = "Qwen/Qwen3-0.6B"
"""Its norm of the queries runs between their projection and the keys', and so the input that both take has left by then: on our tape both
projections come first, so it stays. One more tensor like it is on the GPU, one less in host memory."""


def of(row: dict[str, Any]) -> tuple[float, float]:
    """Our peak and our host memory against the traced ones."""
    answer = estimate(scenario(row["scenario"]))
    return answer.facts["peak_allocated"] / row["peak"] - 1, answer.host.items[0].nbytes / row["host"] - 1


@pytest.mark.parametrize("row", [row for row in ROWS if row["scenario"]["model"] != BETWEEN], ids=lambda row: str(row["peak"]))
def test_peak_and_host_memory(row: dict[str, Any]) -> None:
    peak, host = of(row)
    assert abs(peak) <= 0.0001, peak
    assert abs(host) <= 0.0002, host


def test_a_norm_between_two_projections() -> None:
    peak, host = of(next(row for row in ROWS if row["scenario"]["model"] == BETWEEN))
    assert 0 < peak < 0.02
    assert -0.045 < host < 0


def kept(saves: int) -> tuple[int, int]:
    """What a chain of `saves` + 1 operators that keep their input of 4,096 bytes, and a last one that keeps the first's, leave: saved on
    the GPU, and in host memory.
    """
    t = Tape(Dim(1), Dim(1))
    first = x = t.op("first", (t.tensor("in", (2048,)),), (2048,))
    first.grad = True
    for number in range(saves):
        x = t.op(f"op {number}", (x,), (2048,), saves=(x,))
    t.op("last", (x, first), (2048,), saves=(first,))
    offload(t)
    return sweep(t, gradient_itemsize=lambda _: 2).saved, t.offloaded


@pytest.mark.parametrize(("saves", "gpu", "host"), [(1, 1, 1), (4, 1, 4), (5, 1, 5), (6, 0, 7), (7, 0, 8)])
def test_what_is_saved_again_soon_stays(saves: int, gpu: int, host: int) -> None:
    """The sixth save sends the first away, and so the seventh of the same tensor is a second copy of it."""
    assert kept(saves) == (gpu * 4096, host * 4096)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"loss": "fused"}, "loss 'fused'"),
        ({"method": "qlora", "quantization": "int8"}, "quantization 'int8'"),
        ({"method": "dora"}, "method 'dora'"),
        ({"gpu_count": 2}, "gpu_count 2"),
        ({"kernels": "liger"}, "loss 'fused'"),
        ({"model": "mistralai/Mixtral-8x7B-v0.1"}, "a mixture of experts"),
        ({"model": "state-spaces/mamba-130m-hf"}, "a recurrent state"),
        ({"objective": "dpo", "checkpointing": "none"}, "objective 'dpo'"),
    ],
)
def test_what_is_refused(keys: dict[str, Any], words: str) -> None:
    asked = {"model": "meta-llama/Llama-3.2-1B", "task": "train", "offload": ["activations"], **keys}
    with pytest.raises(Unknown, match=words) as caught:
        estimate(scenario(asked))
    assert "\n" not in str(caught.value)


def test_torchtune_offloads_with_checkpointing_only() -> None:
    asked = {"model": "meta-llama/Llama-3.2-1B", "task": "train", "engine": "torchtune", "offload": ["activations"]}
    with pytest.raises(BadInput, match="add checkpointing full"):
        estimate(scenario({**asked, "checkpointing": "none"}))
    assert estimate(scenario(asked)).host.items[0].nbytes == 16 * 2048 * 2048 * 2
