"""Engines that run some model types only: each type of the catalogue, and any damaged config, is estimated or refused in one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import catalogue, damaged_configs

from vramplan import Estimate, VramplanError, estimate

ENGINES = ("tensorrt-llm", "mlx", "exllamav2", "exllamav3", "lmdeploy", "litgpt")
RUN_BY_ALL = ("llama", "qwen2", "qwen3")


def answered_or_refused(config: object, engine: str, **more: object) -> Estimate | None:
    try:
        return estimate(config, engine=engine, **more)  # type: ignore[arg-type]
    except VramplanError as error:
        refusal = str(error)
    assert "\n" not in refusal
    return None


@pytest.mark.parametrize("model_type", sorted(catalogue()))
def test_each_type_is_estimated_or_refused(model_type: str) -> None:
    for engine in ENGINES:
        answer = answered_or_refused(catalogue()[model_type], engine, context_length=256)
        assert answer is not None or model_type not in RUN_BY_ALL, engine
        if answer is not None:
            assert answer.quantities["weights"] > 0
            assert answer.peak[1] == sum(item.nbytes for item in answer.ledger.items if answer.peak[0] in item.alive)
            assert all(type(item.nbytes) is int and item.nbytes >= 0 for item in answer.ledger.items)


@given(damaged_configs(), st.sampled_from(ENGINES), st.sampled_from([None, "exl3-3bpw", "mlx-4bit", "awq", "fp8", "nf4"]))
def test_any_config_is_estimated_or_refused(config: dict[str, object], engine: str, weights: str | None) -> None:
    answered_or_refused(config, engine, weights=weights, context_length=256)


@pytest.mark.parametrize("engine", ENGINES)
def test_more_context_and_sequences_never_take_less(engine: str) -> None:
    def takes(**more: int) -> int:
        return estimate("meta-llama/Llama-3.1-8B", engine=engine, **{"context_length": 2048, **more}).peak[1]

    assert takes() <= takes(context_length=8192) <= takes(context_length=32768)
    assert takes() <= takes(sequences=4) <= takes(sequences=64) or engine in ("tensorrt-llm", "lmdeploy")  # whose default is more
