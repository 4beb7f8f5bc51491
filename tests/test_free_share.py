"""TensorRT-LLM and LMDeploy: pools that are a share of what is free, by published logs and exact arithmetic; what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from vramplan import BadInput, Estimate, Unknown, estimate
from vramplan.engines import engine, engine_names
from vramplan.scenario import ENGINES
from vramplan.units import GiB

LLAMA = "meta-llama/Llama-3.1-8B"


def ask(engine: str, model: str = LLAMA, **more: Any) -> Estimate:
    return estimate(model, **{"engine": engine, "gpu": "h100-sxm-80gb", "context_length": 8192, **more})


def before(answer: Estimate) -> int:
    """Bytes that are there when the pool is sized."""
    profiled = answer.ledger.total("activations", "profiled pass")
    return answer.quantities["weights"] + answer.ledger.total("cuda context") + profiled


def test_every_engine_that_a_scenario_may_name_is_described() -> None:
    assert set(engine_names()) == set(ENGINES["infer"])
    with pytest.raises(Unknown, match="for inference there are"):
        engine("megatron")


# ---- the rule -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("engine", "share", "block"), [("tensorrt-llm", 0.9, 32), ("lmdeploy", 0.8, 64)])
@pytest.mark.parametrize("more", [{}, {"gpu_memory_utilization": 0.5}, {"weights": "fp8-block"}, {"gpu_count": 2}, {"gpu": "rtx-4090"}])
def test_the_pool_is_a_share_of_what_is_free(engine: str, share: float, block: int, more: dict[str, Any]) -> None:
    answer = ask(engine, **more)
    assert answer.gpu is not None
    pool = int((answer.gpu.usable - before(answer)) * more.get("gpu_memory_utilization", share))
    assert answer.facts["kv_cache"] == pool
    assert answer.facts["kv_tokens"] == pool // (answer.facts["kv_bytes_per_token"] * block) * block


@pytest.mark.parametrize(
    ("free", "pool", "token", "tokens"),
    [(17.83, 16.05, 65_536, 8219 * 32)],
)
def test_a_published_log_of_tensorrt_llm(free: float, pool: float, token: int, tokens: int) -> None:
    """Llama-3.1-8B with an fp8 cache: 0.9 × 17.83 = 16.05 GiB, 8,219 blocks of 32 tokens (NVIDIA/TensorRT-LLM's docs, start-up log)."""
    answer = ask("tensorrt-llm", kv_dtype="fp8")
    assert answer.facts["kv_bytes_per_token"] == token
    memory = before(answer) + round(free * GiB)
    same = ask("tensorrt-llm", kv_dtype="fp8", gpu=None, gpu_memory=memory)
    assert same.facts["kv_cache"] / GiB == pytest.approx(pool, abs=0.01)
    assert same.facts["kv_tokens"] == pytest.approx(tokens, rel=0.001)


# ---- caches -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("kv", "token"), [("auto", 131_072), ("int8", 2 * 32 * 8 * (128 + 4)), ("int4", 2 * 32 * 8 * (64 + 4))])
def test_lmdeploys_cells(kv: str, token: int) -> None:
    """quant_policy: a scale and a zero point of 2 B each for each token and head, of keys and of values."""
    assert ask("lmdeploy", kv_dtype=kv).facts["kv_bytes_per_token"] == token
    assert ask("lmdeploy", kv_dtype=kv, gpu_count=2).facts["kv_bytes_per_token"] == token // 2


def test_latents_are_whole_on_every_rank() -> None:
    answer = ask("tensorrt-llm", "deepseek-ai/DeepSeek-V3", gpu="b200", gpu_count=8)
    assert answer.facts["kv_bytes_per_token"] == 61 * 576 * 2


def test_lmdeploy_pairs_scales_and_zeros() -> None:
    """AWQ's groups of 128: 4 bits, and 2 × 16 bits for each group in place of 16 + 4."""
    mlp = ask("lmdeploy", weights="awq").ledger.total("weights", "mlp")
    assert mlp == 32 * 3 * 4096 * 14336 * (4 + 32 / 128) / 8


def test_lmdeploys_batch_follows_from_the_gpu() -> None:
    assert [ask("lmdeploy", gpu=gpu).scenario.sequences for gpu in ("h100-sxm-80gb", "a100-sxm-80gb", "rtx-4090")] == [1024, 384, 128]


def test_lmdeploys_buffers() -> None:
    answer = ask("lmdeploy", sequences=64)
    assert answer.ledger.total("buffers", "partial sums") == 4096 * (32 * 128 + 2 * 32 + 1) * 4
    assert answer.ledger.total("buffers", "token ids") == 64 * 8192 * 4
    assert answer.ledger.total("activations", "logits") == 64 * 128256 * 10
    two = ask("lmdeploy", sequences=64, gpu_count=2)
    assert two.ledger.total("buffers", "shared by ranks") == 2 * (8192 + 64) * 4096


def test_pipelines_of_tensorrt_llm_give_the_first_stages_one_more_layer() -> None:
    """torch.tensor_split of 32 layers over 3 stages: 11, 11, 10."""
    answer = ask("tensorrt-llm", pipeline_parallel=3)
    layer = 4096 * 2
    norms = [share.ledger.total("weights", "norms") // layer for share in sorted(answer.shares, key=lambda share: share.rank)]
    assert norms == [22, 22, 21]  # two a layer, and the last norm


def test_it_does_not_fit_where_the_pool_is_short() -> None:
    assert ask("tensorrt-llm", gpu="rtx-4090", context_length=131_072).fits is False
    assert ask("lmdeploy", gpu="rtx-4090", context_length=131_072).fits is False
    assert ask("lmdeploy", gpu="rtx-4090", sequences=16).fits is True


def test_what_comes_after_the_pool_must_fit_into_the_rest() -> None:
    """0.98 of what is free leaves less than a pass of 8,192 tokens takes."""
    answer = ask("lmdeploy", gpu="rtx-4090", gpu_memory_utilization=0.98)
    assert answer.fits is False
    assert any("exceeds what the pool leaves" in remark for remark in answer.remarks)


# ---- refusals -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("engine", "model", "more", "error", "message"),
    [
        ("lmdeploy", LLAMA, {"weights": "exl2-4.0bpw"}, BadInput, "weights 'exl2-4.0bpw'"),
        ("lmdeploy", LLAMA, {"kv_dtype": "fp8"}, BadInput, "kv_dtype 'fp8'"),
        ("lmdeploy", LLAMA, {"kv_dtype": {"k": "int8", "v": "int4"}}, BadInput, "quant_policy"),
        ("lmdeploy", LLAMA, {"gpu": "mi300x"}, BadInput, "NVIDIA"),
        ("lmdeploy", LLAMA, {"engine_version": "0.2.0"}, Unknown, "before 0.3"),
        ("lmdeploy", LLAMA, {"pipeline_parallel": 2}, Unknown, "pipeline_parallel"),
        ("lmdeploy", "Qwen/Qwen3-Next-80B-A3B-Instruct", {}, (BadInput, Unknown), "Qwen3-Next"),
        ("tensorrt-llm", LLAMA, {"tensor_parallel": 3}, BadInput, "tensor_parallel 3"),
        ("tensorrt-llm", LLAMA, {"kv_dtype": "q8_0"}, BadInput, "kv_dtype 'q8_0'"),
        ("tensorrt-llm", LLAMA, {"kv_dtype": {"k": "fp8", "v": "bf16"}}, BadInput, "one for keys and values"),
        ("tensorrt-llm", LLAMA, {"engine_version": "0.21.0"}, Unknown, "before 1.0"),
        ("tensorrt-llm", LLAMA, {"gpu": "m3 max 64gb"}, BadInput, "NVIDIA"),
        ("tensorrt-llm", LLAMA, {"weights": "mlx-4bit"}, BadInput, "weights 'mlx-4bit'"),
        ("tensorrt-llm", LLAMA, {"context_length": 200_000}, BadInput, "context_length"),
        ("tensorrt-llm", "Qwen/Qwen3-Next-80B-A3B-Instruct", {}, Unknown, "recurrent states"),
    ],
)
def test_refusals(engine: str, model: str, more: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        ask(engine, model, **more)
