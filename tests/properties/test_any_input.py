"""Whatever is given as a scenario or a config, the answer is an estimate or one line, in bounded time."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from strategies import ENGINES, catalogue, damaged_configs, json_values

from vramplan import Unknown, VramplanError, estimate, scenario
from vramplan.scenario import keys
from vramplan.units import GiB

SECONDS = 5
"""Far above the milliseconds that any estimate takes, so that a busy machine does not fail the test."""


def answered_or_refused(given_: object) -> None:
    start = time.perf_counter()
    try:
        data = estimate(scenario(given_)).to_dict()  # type: ignore[arg-type]
    except VramplanError as error:
        text = str(error)
        assert text.strip()
        assert "\n" not in text
        assert len(text) < 3000
    else:
        json.dumps(data, allow_nan=False)
    assert time.perf_counter() - start < SECONDS


pytestmark = pytest.mark.usefixtures("offline")

anything = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
valued = st.dictionaries(st.sampled_from(["model", *keys()]), json_values, max_size=6)


@settings(anything, max_examples=400)
@given(st.dictionaries(st.text(max_size=12), json_values, max_size=4) | valued)
def test_any_json_object_is_a_scenario_or_refused(given_: dict[str, Any]) -> None:
    answered_or_refused(given_)


@settings(anything, max_examples=400)
@given(valued, st.sampled_from(["meta-llama/Llama-3.1-8B", "google/gemma-3-4b-it", "openai/gpt-oss-20b"]))
def test_any_values_beside_a_good_model(given_: dict[str, Any], model: str) -> None:
    answered_or_refused({**given_, "model": model})


@settings(anything, max_examples=800)
@given(damaged_configs(), st.sampled_from(ENGINES), st.sampled_from([None, "Q4_K_M", "nf4", "awq", "fp8"]))
def test_any_config_is_estimated_or_refused(config: dict[str, Any], engine: str, weights: str | None) -> None:
    if weights != "Q4_K_M" or engine == "llama.cpp":
        answered_or_refused({"model": config, "engine": engine, "weights": weights, "context_length": 300, "gpu_memory": 24 * GiB})


@settings(anything, max_examples=100)
@given(st.dictionaries(st.text(max_size=12), json_values, max_size=6), st.sampled_from(sorted(catalogue())))
@example({"text_config": {"text_config": {}}}, "gemma3")
@example({"num_hidden_layers": 10_000, "num_experts": 2**31 - 1, "hidden_size": 2**31 - 1}, "qwen3_moe")
def test_any_object_with_a_model_type(config: dict[str, Any], model_type: str) -> None:
    answered_or_refused({"model": {**config, "model_type": model_type}})


GAPS = {
    "sglang": {
        *("bert", "distilbert", "modernbert", "mpnet", "roberta", "xlm-roberta", "mamba", "mamba2"),  # keep no tokens
        *("deepseek_v4", "deepseek_ref"),  # compressed caches
    },
    "llama.cpp": {"mllama", "t5"},  # attend to another encoder's output
}
WHY = {"sglang": "SGLang's pools", "llama.cpp": "second encoder's output"}


@pytest.mark.parametrize("model_type", sorted(catalogue()))
def test_a_model_of_each_type_is_estimated_by_each_engine(model_type: str) -> None:
    """As it is: a refusal would be a gap, and must be one of these."""
    for engine in ENGINES:
        if model_type in GAPS.get(engine, ()):
            with pytest.raises(Unknown, match=WHY[engine]):
                estimate(catalogue()[model_type], engine=engine, context_length=256)
            continue
        try:
            answer = estimate(catalogue()[model_type], engine=engine, context_length=256)
        except VramplanError as error:
            pytest.fail(f"{model_type} with {engine}: {error}")
        assert answer.quantities["weights"] > 0
        assert answer.quantities["parameters"] > 0
