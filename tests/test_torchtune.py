"""torchtune judged by its own models, losses and checkpointing, traced: `data/traced/torchtune.jsonl`.

`scripts/trace_torchtune.py` makes them. Both sides are compared without the workspaces of kernels. What others measured with torchtune on
one GPU ran compiled or at unknown lengths.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from vramplan import BadInput, Unknown, estimate, scenario
from vramplan.formats.torchao import nf4tensor

TRACED = [json.loads(line) for line in (Path(__file__).parent.parent / "data" / "traced" / "torchtune.jsonl").read_text().splitlines()]
LLAMA = "meta-llama/Llama-3.2-1B"


def name(row: dict[str, Any]) -> str:
    s = row["scenario"]
    parts = (s["model"].split("/")[-1], s["method"], f"{s['micro_batch']}x{s['sequence_length']}", s.get("checkpointing", "full"))
    return "-".join(parts)


def error(row: dict[str, Any]) -> float:
    answer = estimate(scenario(row["scenario"]))
    own = sum(item.nbytes for item in answer.ledger.items if item.path[0] == "workspace")
    return (answer.facts["peak_allocated"] - own) / (row["peak"] - row["categories"].get("workspace", 0)) - 1


@pytest.mark.parametrize("row", TRACED, ids=name)
def test_traced(row: dict[str, Any]) -> None:
    assert -0.01 <= error(row) <= 0.015


def test_traced_together() -> None:
    errors = [abs(error(row)) for row in TRACED]
    assert len(errors) >= 30
    assert median(errors) <= 0.002


def of(**keys: Any) -> Any:
    return estimate(scenario({"model": LLAMA, "task": "train", "engine": "torchtune", "micro_batch": 2, "sequence_length": 512, **keys}))


def test_defaults_are_those_of_the_recipes() -> None:
    """recipes/configs/llama3_2/1B_{full,lora}_single_device.yaml and their like."""
    full, lora = of(method="full"), of(method="lora")
    assert (full.scenario.optimizer, full.scenario.optimizer_in_backward, full.scenario.checkpointing) == ("paged-adamw-8bit", True, "full")
    assert (lora.scenario.optimizer, lora.scenario.loss, lora.scenario.checkpointing) == ("adamw-fused", "chunked", "full")
    assert "LoRA of rank 8 in bf16 on q_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in lora.assumptions


def test_rotary_tables() -> None:
    """One of 131,072 positions, 32 pairs, in fp32; Qwen2.5's with adapters is one in each of 24 layers, and has each value twice."""
    qwen = of(model="Qwen/Qwen2.5-0.5B", method="lora")
    found = [
        item.nbytes for answer in (of(method="lora"), qwen) for item in answer.ledger.items if item.path == ("weights", "rotary tables")
    ]
    assert found == [131072 * 32 * 2 * 4, 24 * 32768 * 2 * 64 * 4]


def test_one_layer_of_the_mlp_stands_for_all() -> None:
    """`apply_lora_to_mlp`."""
    one, three = (
        of(method="lora", lora={"targets": ["up_proj"]}),
        of(method="lora", lora={"targets": ["gate_proj", "up_proj", "down_proj"]}),
    )
    assert one.facts["trainable_parameters"] == three.facts["trainable_parameters"] == 16 * 3 * 8 * (2048 + 8192)


def test_nf4tensor() -> None:
    """As torchao 0.10's to_nf4 made it of a bf16 weight of 1024 x 2048: 1,048,576 + 32,768 + 256 + 2 + 32 bytes."""
    assert nf4tensor().nbytes(1024, 2048) == 1081634


def test_unpacking_takes_fourteen_bytes_an_element() -> None:
    """Measured with torch's profiler on a CPU, product of 8 rows with a weight of 2048 x 2048: 58,851,328 B in all, x and y left out."""
    from vramplan.ops.nf4tensor import UNPACKING

    assert int(2048 * 2048 * UNPACKING) == 58851328


@pytest.mark.parametrize(
    ("keys", "error_type", "says"),
    [
        ({"precision": "bf16-mixed"}, Unknown, "estimated for engine 'torchtune' are bf16, fp32"),
        ({"method": "qlora", "quantization": "fp4"}, BadInput, "nf4"),
        ({"compile": True}, Unknown, "compile"),
        ({"model": "EleutherAI/pythia-410m"}, Unknown, "gpt_neox"),
        ({"model": "Qwen/Qwen2.5-0.5B", "method": "qlora", "lora": {"targets": ["q_proj", "v_proj"]}}, Unknown, "without down_proj"),
        ({"method": "lora", "lora": {"targets": ["q_prj"]}}, BadInput, "q_proj"),
    ],
)
def test_what_it_does_not_have_is_refused(keys: dict[str, Any], error_type: type[Exception], says: str) -> None:
    with pytest.raises(error_type, match=says):
        of(**keys)
