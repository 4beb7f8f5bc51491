"""Several GPUs that share a model: against FSDP itself, traced on a fake process group, and what has to hold of any sharding."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from vramplan import estimate
from vramplan.errors import BadInput, Unknown
from vramplan.ledger import Moment
from vramplan.parallel.sharded import part_of
from vramplan.tensors import Weight

ROWS = [json.loads(line) for line in (Path(__file__).parents[1] / "data/traced/fsdp.jsonl").read_text().splitlines()]
LLAMA = {"model": "meta-llama/Llama-3.2-1B", "task": "train", "sequence_length": 512}


def peak(**keys: Any) -> int:
    return int(estimate(**keys).facts["peak_allocated"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['scenario']['model'].split('/')[1]}-{ROWS.index(row)}")
def test_a_rank_takes_what_fsdp_takes(row: dict[str, Any]) -> None:
    assert peak(**row["scenario"]) == pytest.approx(row["peak"], rel=0.002)


def test_half_of_the_steps_agree_to_a_twenty_thousandth() -> None:
    errors = [abs(peak(**row["scenario"]) / row["peak"] - 1) for row in ROWS]
    assert len(errors) >= 85
    assert median(errors) <= 0.00005


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 1000])
@pytest.mark.parametrize("weight", [{"shape": (10, 4)}, {"shape": (7,)}, {"shape": (6, 4), "copies": 12}])
def test_parts_make_up_the_whole(ranks: int, weight: dict[str, Any]) -> None:
    whole = Weight(name="w", kind="linear", part="mlp", **weight)
    rows = whole.copies if whole.copies > 1 else whole.shape[0]
    part = part_of(whole, ranks)
    assert whole.numel <= ranks * part.numel < whole.numel + ranks * whole.numel // rows
    assert part_of(whole, 1).numel == whole.numel


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("engine", ["transformers", "litgpt", "torchtune"])
def test_more_gpus_never_need_more_of_each(engine: str, method: str) -> None:
    keys = {**LLAMA, "engine": engine, "method": method, "sharding": "fsdp", "gradient_accumulation": 1}
    peaks = [peak(**keys, gpu_count=count) for count in (1, 2, 4, 8, 64)]
    assert peaks[1:] == sorted(peaks[1:], reverse=True)


def test_what_is_shared_shrinks_with_the_ranks() -> None:
    two, eight = (estimate(**LLAMA, method="full", sharding="fsdp", gpu_count=count).ledger for count in (2, 8))
    for path in (("weights",), ("optimizer states",)):
        assert eight.total(*path) == pytest.approx(two.total(*path) / 4, rel=0.001)


def test_ddp_keeps_a_second_place_for_every_gradient() -> None:
    one, two = (peak(**LLAMA, method="lora", gpu_count=count) for count in (1, 2))
    trained = estimate(**LLAMA, method="lora").facts["trainable_parameters"]
    assert two - one == trained * 4


def test_whole_copies_under_fsdp1_have_no_second_place() -> None:
    assert peak(**LLAMA, method="lora", gpu_count=2, sharding="ddp", fsdp_version=1) == peak(**LLAMA, method="lora")


def test_gradients_that_lie_in_the_buckets_are_there_all_the_time() -> None:
    viewed = estimate(**LLAMA, method="full", gpu_count=2, sharding="ddp", gradient_as_bucket_view=True)
    held = {viewed.ledger.total("gradients", moment=moment) for moment in (Moment.FORWARD, Moment.BACKWARD, Moment.STEP)}
    assert held == {viewed.facts["trainable_parameters"] * 2}


@pytest.mark.parametrize(("release", "version"), [("5.9", 1), ("5.10", 2), (None, 2)])
def test_the_release_says_which_fsdp(release: str | None, version: int) -> None:
    """`training_args.py` of 5.9.0 and 5.10.0: `fsdp_config.get("version", …)`."""
    keys = {**LLAMA, "method": "full", "gpu_count": 2, "sharding": "fsdp", "engine_version": release}
    assert peak(**keys) == peak(**keys, fsdp_version=version) != peak(**keys, fsdp_version=3 - version)


def test_hybrid_sharding_is_that_of_one_group_where_nothing_is_cast() -> None:
    keys = {**LLAMA, "method": "full", "precision": "bf16", "gradient_accumulation": 1}
    assert peak(**keys, sharding="hsdp", gpu_count=64) == peak(**keys, sharding="fsdp", gpu_count=8)


def test_a_plain_loop_holds_the_logits() -> None:
    keys = {**LLAMA, "method": "lora", "micro_batch": 4, "checkpointing": "full"}
    assert peak(**keys, loop="plain") - peak(**keys, loop="trainer") == 4 * 512 * 128256 * 2


def test_offloaded_parts_of_all_ranks_lie_in_host_memory() -> None:
    here = estimate(**LLAMA, method="full", sharding="fsdp", gpu_count=4)
    away = estimate(**LLAMA, method="full", sharding="fsdp", gpu_count=4, offload=["parameters", "optimizer"])
    for path in (("weights",), ("optimizer states",)):
        assert (away.ledger.total(*path), away.host.total(*path)) == (0, 4 * here.ledger.total(*path))
    assert away.facts["peak_allocated"] < here.facts["peak_allocated"] - here.ledger.total("optimizer states")


def test_of_offloaded_packed_weights_the_scales_stay() -> None:
    """bitsandbytes' scales are no parameters, which FSDP would move: 4 B for 64 elements."""
    keys = {**LLAMA, "method": "qlora", "quantization": "nf4", "double_quant": False, "lora": {"dtype": "bf16"}}
    away = estimate(**keys, sharding="fsdp", gpu_count=2, offload=["parameters", "optimizer"])
    linear = estimate(**keys).ledger.total("weights", "mlp") + estimate(**keys).ledger.total("weights", "attention")
    assert away.ledger.total("weights", "scales") == pytest.approx(linear / (0.5 + 4 / 64) * 4 / 64, rel=0.001)


def test_the_answer_says_how_many_gpus_are_alike() -> None:
    answer = estimate(**LLAMA, method="full", sharding="fsdp", gpu_count=8)
    assert [share.count for share in answer.shares] == [8]


@pytest.mark.parametrize(
    ("keys", "kind", "text"),
    [
        ({"gpu_count": 2, "sharding": "none"}, BadInput, "choose ddp or fsdp"),
        ({"gpu_count": 2, "sharding": "hsdp", "engine": "torchtune"}, Unknown, "estimated for engine 'torchtune' are none, fsdp"),
        ({"gpu_count": 8, "sharding": "hsdp"}, BadInput, "several groups; choose 2, 4"),
        ({"gpu_count": 12, "sharding": "hsdp", "shard_size": 5}, BadInput, "choose 2, 3, 4, 6"),
        ({"gpu_count": 8, "sharding": "fsdp", "shard_size": 4}, BadInput, "of sharding hsdp"),
        ({"gpu_count": 16, "sharding": "hsdp", "fsdp_version": 1}, Unknown, "are none, ddp, fsdp"),
        ({"gpu_count": 2, "sharding": "fsdp", "engine": "torchtune", "fsdp_version": 1}, Unknown, "estimated with FSDP2"),
        ({"gpu_count": 2, "sharding": "fsdp", "gradient_as_bucket_view": True}, BadInput, "of DDP"),
        ({"gpu_count": 2, "sharding": "ddp", "reshard_after_forward": "never"}, BadInput, "of FSDP"),
        ({"gpu_count": 2, "engine": "unsloth", "method": "lora"}, Unknown, "on one GPU"),
        ({"gpu_count": 2, "sharding": "fsdp", "offload": ["optimizer"]}, BadInput, "write parameters,optimizer"),
        ({"gpu_count": 2, "sharding": "fsdp", "method": "qlora", "quantization": "int8"}, Unknown, "choose nf4 or ddp"),
        ({"gpu_count": 2, "sharding": "ddp", "offload": ["optimizer"]}, Unknown, "with sharding 'ddp'"),
        ({"gpu_count": 2, "sharding": "fsdp", "method": "lora", "trained_modules": ["lm_head"]}, BadInput, "several dtypes"),
    ],
)
def test_contradictions_name_the_remedy(keys: dict[str, Any], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        estimate(**LLAMA, **keys)
