"""Speed: rooflines by hand, what must hold for any, and published measurements that the fit has not seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vramplan import estimate
from vramplan.catalog.gpus import find_gpu
from vramplan.errors import BadInput, Unknown
from vramplan.estimate import Estimate
from vramplan.measured.validate import read, replay
from vramplan.speed import concurrency, run, speed, told
from vramplan.speed.hardware import link, pcie, peak
from vramplan.speed.roof import Roof
from vramplan.speed.serving import all_reduce, decode, prefill
from vramplan.speed.training import step
from vramplan.speed.work import touched

DATA = Path(__file__).resolve().parent.parent / "data" / "measured" / "speed.jsonl"
LLAMA = "meta-llama/Llama-3.1-8B"
READ = 2 * (8_030_261_248 - 128_256 * 4096)
"""Bytes of Llama-3.1-8B's weights in bf16 that a token reads: all parameters but the embeddings, of which it looks up a row."""
CACHED = 2 * 8 * 128 * 32 * 2
"""Bytes of its cache for a token: keys and values of 8 heads × 128 in 32 layers, in 16 bits."""


def served(model: str = LLAMA, gpu: str = "rtx-4090", **keys: object) -> Estimate:
    return estimate(model, gpu=gpu, **keys)


def test_decoding_reads_weights_and_cache_at_the_memory_bandwidth() -> None:
    roof = decode(served(context_length=4096), 1, 2000)
    assert roof.bandwidth == pytest.approx((READ + 2000 * CACHED) / 1008e9)
    assert roof.ideal == roof.bandwidth > roof.compute


def test_decoding_several_sequences_reads_the_weights_once() -> None:
    roof = decode(served(context_length=4096), 16, 1000)
    assert roof.bandwidth == pytest.approx((READ + 16 * 1000 * CACHED) / 1008e9)
    products = 2 * (8_030_261_248 - 128_256 * 4096 - 65 * 4096)  # norms are no products
    attention = 4 * 32 * 128 * 1000 * 32
    assert roof.compute == pytest.approx(16 * (products + attention) / 165.2e12)


def test_a_prompt_computes_each_product_and_half_of_the_attention() -> None:
    roof = prefill(served(context_length=4096), 1, 2048)
    layers = 2 * 2048 * (8_030_261_248 - 2 * 128_256 * 4096 - 65 * 4096)
    attention = 4 * 32 * 128 * 32 * (2048 * 2049 // 2)
    assert roof.compute == pytest.approx((layers + attention + 2 * 128_256 * 4096) / 165.2e12, rel=1e-6)


def test_experts_touched() -> None:
    assert touched(8, 2, 1) == 2
    assert touched(8, 2, 2) == pytest.approx(8 * (1 - 0.75**2))
    assert touched(128, 8, 10_000) == pytest.approx(128)


def test_a_token_reads_the_experts_that_it_is_sent_to() -> None:
    bandwidth = find_gpu("h100-sxm-80gb").bandwidth
    one, many = (decode(served("Qwen/Qwen3-30B-A3B", "h100-sxm-80gb", context_length=4096), b, 1).bandwidth for b in (1, 512))
    expert = 3 * 2048 * 768 * 48 * 2  # gate, up and down in all layers, in bf16
    assert one * bandwidth == pytest.approx(2 * 30_532_122_624 - 2 * 151_936 * 2048 - 120 * expert, rel=1e-4)
    assert many * bandwidth == pytest.approx(2 * 30_532_122_624 - 2 * 151_936 * 2048, rel=2e-3)


def test_tensor_parallel_ranks_share_the_weights_and_add_up_twice_a_layer() -> None:
    whole = decode(served(gpu="h100-sxm-80gb", context_length=4096), 1, 1000)
    half = decode(served(gpu="h100-sxm-80gb", gpu_count=2, tensor_parallel=2, context_length=4096), 1, 1000)
    assert half.bandwidth == pytest.approx(whole.bandwidth / 2, rel=1e-3)
    assert half.link == pytest.approx(64 * all_reduce(find_gpu("h100-sxm-80gb"), 2, 8192))
    assert all_reduce(find_gpu("h100-sxm-80gb"), 2, 8192) == pytest.approx(6.6e-6 + 2 * (4096 / 450e9 + 0.6e-6))


def test_links() -> None:
    assert pcie(find_gpu("rtx-4090")) == pytest.approx(31.5e9, rel=1e-3)
    assert link(find_gpu("a100-sxm-80gb")) == 300e9
    assert link(find_gpu("rtx-4090")) == pcie(find_gpu("rtx-4090"))


def test_formats_without_units_are_computed_wider() -> None:
    a100 = find_gpu("a100-sxm-80gb")
    assert peak(a100, "fp8") == peak(a100, "bf16") == 312e12
    assert peak(find_gpu("rtx-4090"), "fp16", "llama.cpp") == 330.4e12


def trained(**keys: object) -> Roof:
    return step(estimate(LLAMA, task="train", gpu="h100-sxm-80gb", micro_batch=1, sequence_length=2048, attention="flash", **keys))[0]


def test_training_takes_six_operations_a_parameter_and_two_more_with_checkpointing() -> None:
    products = 2 * 2048 * (8_030_261_248 - 128_256 * 4096 - 65 * 4096)
    attention = 4 * 32 * 128 * 32 * (2048 * 2049 // 2)
    head = 2 * 2048 * 128_256 * 4096
    plain = trained(method="full", precision="bf16", checkpointing="none")
    assert plain.compute == pytest.approx((3 * products + 3.5 * attention) / 989e12, rel=0.01)
    again = trained(method="full", precision="bf16", checkpointing="full")
    assert again.compute - plain.compute == pytest.approx((products - head + attention) / 989e12, rel=0.01)


def test_a_frozen_weight_has_no_gradient() -> None:
    full = trained(method="full", precision="bf16", checkpointing="none")
    lora = trained(method="lora", precision="bf16", checkpointing="none", lora={"rank": 8, "dtype": "bf16"})
    assert 0.6 < lora.compute / full.compute < 0.75


def test_weights_on_the_host_are_read_there() -> None:
    keys = {"engine": "llama.cpp", "weights": "Q4_K_M", "context_length": 4096, "gpu_layers": 0}
    with pytest.raises(Unknown, match="host_bandwidth"):
        told(served(**keys))
    found = decode(served(**keys, host_bandwidth="80GB"), 1, 1)
    assert found.bandwidth == pytest.approx(4.6e9 / 80e9, rel=0.1)


def test_what_is_not_known_is_not_told() -> None:
    assert speed(estimate(LLAMA)) is None
    assert speed(estimate(LLAMA, gpu_memory="80GiB")) is None
    assert "speed" not in estimate(LLAMA).to_dict()
    assert "bandwidth is not known" in estimate(LLAMA, gpu_memory="80GiB").to_dict()["speed"]["unknown"]
    with pytest.raises(Unknown, match=r"rtx-4090\+rtx-3060-12gb: speed over GPUs of several kinds"):
        told(served(gpu="rtx-4090+rtx-3060-12gb", engine="llama.cpp", weights="Q4_K_M"))


def test_figures_of_the_answer_agree() -> None:
    answer = served(gpu="h100-sxm-80gb", context_length=4096, sequences=8)
    found = told(answer)
    assert found.bound == "bandwidth"
    assert found.spread[0] <= found.efficiency <= found.spread[1]
    shown = answer.to_dict()["speed"]
    assert shown["decode_tokens_per_second"] == pytest.approx(found.decode, rel=1e-4)
    assert shown["decode_tokens_per_second_per_sequence"] == pytest.approx(found.decode / 8, rel=1e-4)
    table = list(concurrency(answer))
    assert [row.sequences for row in table] == [1, 2, 4, 8]
    assert table[-1].total == found.decode


def test_time_and_money() -> None:
    answer = estimate(
        LLAMA, task="train", method="lora", gpu="a100-sxm-80gb", gpu_count=2, sharding="fsdp", micro_batch=1, sequence_length=2048
    )
    found = told(answer)
    assert found.step is not None
    assert found.tokens == pytest.approx(2 * 2048 / found.step)
    done = run(answer, tokens=3_600_000, price=1.5)
    assert done.seconds == pytest.approx(3_600_000 / found.tokens)
    assert done.usd == pytest.approx(done.seconds / 3600 * 1.5 * 2)
    assert done.between[0] <= done.seconds <= done.between[1]
    with pytest.raises(BadInput):
        run(answer, tokens=0)


@given(st.floats(1, 8), st.floats(1, 8))
def test_a_faster_gpu_is_never_slower(memory: float, rate: float) -> None:
    answer = served(context_length=4096)
    assert answer.gpu is not None
    rates = {name: value * rate for name, value in answer.gpu.rates.items()}
    faster = replace(answer, gpu=replace(answer.gpu, bandwidth=round(answer.gpu.bandwidth * memory), rates=rates))
    for before, after in zip(told(answer).numbers.items(), told(faster).numbers.items(), strict=True):
        worse = after[1] / before[1] if before[0].endswith("_s") else before[1] / after[1]
        assert worse <= 1 + 1e-9


@given(st.integers(1, 255), st.sampled_from([LLAMA, "Qwen/Qwen3-30B-A3B"]))
def test_more_sequences_are_never_fewer_tokens_in_all(sequences: int, model: str) -> None:
    answer = served(model, "h100-sxm-80gb", context_length=2048)
    fewer, more = (decode(answer, n, 1024) for n in (sequences, sequences + 1))
    assert sequences / fewer.seconds(0.7, 1e-4) <= (sequences + 1) / more.seconds(0.7, 1e-4) + 1e-9


TARGETS = {"decode_tokens_per_second": 0.20, "prefill_tokens_per_second": 0.25, "training_tokens_per_second": 0.25}


def test_errors_on_configurations_that_the_fit_has_not_seen() -> None:
    errors: dict[tuple[str, ...], list[float]] = {}
    for row in read(DATA):
        if not row.get("held_out"):
            continue
        found = replay(row)
        assert found.error is not None, found.refused
        engine = row["scenario"]["engine"] + row["scenario"].get("backend", "")
        for group in ((found.quantity,), (found.quantity, engine)):
            errors.setdefault(group, []).append(abs(found.error))
    assert sum(len(errors[(quantity,)]) for quantity in TARGETS) > 300
    missed = {group for group, sizes in errors.items() if len(sizes) >= 5 and median(sizes) > TARGETS[group[0]]}
    # data/measured/README.md: prompts with Vulkan and ROCm differ between releases of their drivers by more than that
    assert missed == {("prefill_tokens_per_second", "llama.cppvulkan"), ("prefill_tokens_per_second", "llama.cpprocm")}
