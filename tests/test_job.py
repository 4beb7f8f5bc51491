"""What every engine checks of a scenario before it counts."""

import pytest

from vramplan import estimate
from vramplan.errors import BadInput, NotFound


@pytest.mark.parametrize(("engine", "kv_dtype"), [("vllm", "q8_0"), ("llama.cpp", "fp8_e4m3"), ("transformers", "fp8")])
def test_a_cache_type_that_the_engine_lacks_is_refused(engine: str, kv_dtype: str) -> None:
    with pytest.raises(BadInput, match=rf"kv_dtype '{kv_dtype}': no cache type of {engine}; it has auto"):
        estimate("Qwen/Qwen3-8B", engine=engine, kv_dtype=kv_dtype)


def test_an_unknown_cache_type_is_told_with_its_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean 'fp8'"):
        estimate("Qwen/Qwen3-8B", engine="vllm", kv_dtype="fp9")


def test_a_prompt_beyond_the_context_is_refused() -> None:
    with pytest.raises(BadInput, match="prompt_length 50,000 and output_length 0: more than the 40,960 tokens"):
        estimate("Qwen/Qwen3-8B", engine="transformers", prompt_length=50_000)


def test_llama_cpp_runs_what_conversion_makes_of_a_checkpoint() -> None:
    """DeepSeek-V3 is stored in FP8, which no GGUF file holds: 2 B a weight."""
    answer = estimate("deepseek-ai/DeepSeek-V3", engine="llama.cpp", context_length=1024)
    assert answer.quantities["weights"] == pytest.approx(2 * answer.quantities["parameters"], rel=0.001)
    assert answer.scenario.weights == "F16"
    with pytest.raises(BadInput, match=r"llama\.cpp loads GGUF files"):
        estimate("Qwen/Qwen3-8B", engine="llama.cpp", weights="awq")
