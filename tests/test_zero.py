"""DeepSpeed's ZeRO: against DeepSpeed itself, traced on a fake process group, and what has to hold of any sharding."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramplan import estimate
from vramplan.errors import BadInput, Unknown
from vramplan.parallel.zero import GROUP, Zero
from vramplan.tensors import Weight

ROWS = [json.loads(line) for line in (Path(__file__).parents[1] / "data/traced/zero.jsonl").read_text().splitlines()]
LLAMA = {"model": "meta-llama/Llama-3.2-1B", "task": "train", "engine": "transformers", "sequence_length": 512, "method": "full"}
STAGES = ("zero1", "zero2", "zero3")


def peak(**keys: Any) -> int:
    return int(estimate(**keys).facts["peak_allocated"])


def asked(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row["scenario"].items() if key != "rank"}


def error(row: dict[str, Any]) -> float:
    """Of the estimate against the rank that takes most, of those that were traced."""
    return peak(**asked(row)) / max(other["peak"] for other in ROWS if asked(other) == asked(row)) - 1


def name(row: dict[str, Any]) -> str:
    own = row["scenario"]
    return f"{own['model'].split('/')[1]}-{own['sharding']}-{own['gpu_count']}-{own['rank']}-{ROWS.index(row)}"


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_a_rank_takes_what_deepspeed_takes(row: dict[str, Any]) -> None:
    assert -0.001 <= error(row) <= 0.01


def test_most_steps_agree_to_a_thousandth() -> None:
    errors = [abs(error(row)) for row in ROWS]
    assert len(errors) >= 20
    assert median(errors) <= 0.001


WEIGHTS = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 300), st.integers(1, 4)), min_size=1, max_size=8)


def weights(shapes: list[tuple[int, int, int]]) -> list[Weight]:
    """Some in layers, some not, matrices and vectors."""
    return [
        Weight(
            name=f"w{n}", kind="linear", part="mlp", shape=(a, b) if b % 3 else (a,), layers=tuple(range(layers)) if layers > 1 else None
        )
        for n, (a, b, layers) in enumerate(shapes)
    ]


@given(shapes=WEIGHTS, ranks=st.integers(1, 64), stage=st.integers(1, 3))
def test_parts_make_up_the_whole(shapes: list[tuple[int, int, int]], ranks: int, stage: int) -> None:
    some = weights(shapes)
    whole = sum(weight.numel for weight in some)
    parts = sum(weight.numel for weight in Zero(stage=stage, ranks=ranks, bucket=1, small=0).stepped(some))
    padding = sum(weight.repeats for weight in some) if stage == 3 else 2 * 2
    assert whole <= ranks * parts < whole + ranks * padding


@given(shapes=WEIGHTS, ranks=st.integers(1, 64))
def test_a_rank_holds_its_part_and_what_it_touches(shapes: list[tuple[int, int, int]], ranks: int) -> None:
    some, zero = weights(shapes), Zero(stage=2, ranks=ranks, bucket=1, small=0)
    whole, held = sum(weight.numel for weight in some), zero.held(some) // 2
    assert whole / ranks <= held <= whole
    assert Zero(stage=2, ranks=1, bucket=1, small=0).held(some) == 2 * whole


def test_stage_3_steps_a_sub_group_at_a_time() -> None:
    layers = Weight(name="w", kind="linear", part="mlp", shape=(GROUP // 10 * 8, 1), layers=tuple(range(5)))
    assert [w.numel for w in Zero(stage=3, ranks=2, bucket=1, small=0).stepped([layers])] == [GROUP // 10 * 12, GROUP // 10 * 8]


@pytest.mark.parametrize("stage", STAGES)
def test_one_rank_has_the_weights_and_states_of_one_gpu(stage: str) -> None:
    one, alone = estimate(**LLAMA, sharding=stage), estimate(**LLAMA, precision="bf16-master")
    counters = 512 * 146
    """A block for each weight's number of steps, of which flat tensors have one."""
    assert one.ledger.total("weights") == pytest.approx(alone.ledger.total("weights"), abs=1024)
    assert alone.ledger.total("optimizer states") - one.ledger.total("optimizer states") == pytest.approx(counters, abs=2048)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_each_stage_shares_more(method: str) -> None:
    keys = {**LLAMA, "method": method, "checkpointing": "full", "gpu_count": 8}
    first, second, third = (estimate(**keys, sharding=stage) for stage in STAGES)
    assert first.facts["peak_allocated"] >= second.facts["peak_allocated"]
    assert third.ledger.total("weights") < second.ledger.total("weights") == first.ledger.total("weights")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("method", ["full", "lora"])
def test_more_gpus_never_need_more_of_each(stage: str, method: str) -> None:
    peaks = [peak(**{**LLAMA, "method": method}, sharding=stage, gpu_count=count) for count in (2, 8, 64)]
    assert peaks == sorted(peaks, reverse=True)


def test_bf16_is_one_under_deepspeed() -> None:
    answers = [estimate(**LLAMA, sharding="zero2", gpu_count=2, precision=name) for name in ("bf16", "bf16-mixed", "bf16-master")]
    assert len({answer.facts["peak_allocated"] for answer in answers}) == 1
    assert any("fp32 master" in line for line in answers[0].assumptions)


@pytest.mark.parametrize(
    ("keys", "kind", "text"),
    [
        ({"sharding": "zero3", "method": "qlora"}, Unknown, "choose zero2 or fsdp"),
        ({"sharding": "zero2", "precision": "fp32"}, Unknown, "estimated are bf16"),
        ({"sharding": "zero2", "optimizer_in_backward": True}, BadInput, "steps over all weights at once"),
        ({"sharding": "zero2", "offload": ["optimizer"]}, Unknown, "offload 'optimizer'"),
        ({"sharding": "zero2", "reshard_after_forward": "never"}, BadInput, "of FSDP"),
        ({"sharding": "zero2", "optimizer": "muon"}, BadInput, "choose adamw"),
        ({"sharding": "zero1", "method": "lora", "lora": {"dtype": "fp32"}}, BadInput, "leave it out"),
        ({"sharding": "zero1", "objective": "dpo"}, Unknown, "choose ddp or fsdp"),
        ({"sharding": "zero2", "method": "qlora", "kbit_preparation": True}, BadInput, "leave it out"),
        ({"sharding": "zero2", "ema": True}, Unknown, "choose ddp or fsdp"),
        ({"sharding": "zero2", "engine": "litgpt"}, Unknown, "estimated for engine 'litgpt'"),
    ],
)
def test_contradictions_name_the_remedy(keys: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        estimate(**{**LLAMA, "gpu_count": 2, **keys})
