"""Sizes of published checkpoints, as the Hub's file lists print them (three digits, headers and metadata included), against our bytes."""

import pytest

from vramplan.dim import Dim
from vramplan.estimate import estimate
from vramplan.families import walk
from vramplan.formats import is_gguf, weights_nbytes
from vramplan.formats import scheme as named
from vramplan.formats.gguf_facts import model_facts
from vramplan.sources import resolve
from vramplan.tape import Tape

SIZES = [  # model, format, GB, repository
    ("google/gemma-2-9b-it", "IQ2_M", 3.43, "bartowski/gemma-2-9b-it-GGUF"),
    ("google/gemma-2-9b-it", "Q3_K_M", 4.76, "bartowski/gemma-2-9b-it-GGUF"),
    ("google/gemma-2-9b-it", "IQ4_XS-imatrix", 5.18, "bartowski/gemma-2-9b-it-GGUF"),
    ("google/gemma-2-2b-it", "Q6_K", 2.15, "bartowski/gemma-2-2b-it-GGUF"),
    ("Qwen/Qwen2-7B-Instruct", "Q2_K", 3.02, "bartowski/Qwen2-7B-Instruct-GGUF"),
    ("Qwen/Qwen2-7B-Instruct", "IQ4_XS-imatrix", 4.22, "bartowski/Qwen2-7B-Instruct-GGUF"),
    ("infly/OpenCoder-8B-Instruct", "Q4_K_M", 4.736, "tensorblock/OpenCoder-8B-Instruct-GGUF"),
    ("meta-llama/Llama-3.1-8B", "Q5_K_M", 5.73, "unsloth's conversion, kbang2021/unsloth-Meta-Llama-3.1-8B-Instruct-bnb-4bit"),
    ("Qwen/Qwen2.5-7B-Instruct", "awq", 5.57, "graelo/Qwen2.5-7B-Instruct-1M-AWQ"),
    ("Qwen/Qwen2.5-VL-7B-Instruct", "awq", 6.92, "Benasd/Qwen2.5-VL-7B-Instruct-AWQ-2"),
    ("mistralai/Mixtral-8x7B-v0.1", "awq", 24.65, "TheBloke/mixtral-8x7b-v0.1-AWQ"),
    ("Qwen/Qwen2.5-32B-Instruct", "gptq", 19.34, "Qwen/Qwen2.5-32B-Instruct-GPTQ-Int4"),
    ("meta-llama/Llama-3.1-8B", "fp8", 9.08, "neuralmagic/Meta-Llama-3.1-8B-Instruct-FP8"),
    ("meta-llama/Llama-3.1-8B", "nvfp4", 6.03, "weiweiz1/llama3.1-8b-nvfp"),
    ("meta-llama/Llama-3.1-70B-Instruct", "nf4-double", 39.52, "unsloth/Meta-Llama-3.1-70B-Instruct-bnb-4bit"),
]


@pytest.mark.parametrize(("model", "weights", "gb", "repository"), SIZES)
def test_files_of_others(model: str, weights: str, gb: float, repository: str) -> None:
    found = resolve(model)
    text = found.text
    tape = walk(Tape(Dim(1, "sequences"), Dim(1, "tokens")), found.config)
    heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
    assert isinstance(heads, int)
    assert isinstance(kv_heads, int)
    facts = model_facts(tape.weights, heads=heads, kv_heads=kv_heads, model_type=str(found.config["model_type"]))
    kept = [weight for weight in tape.weights if not (is_gguf(weights) and weight.tower)]
    shares = weights_nbytes(kept, named(weights, dtype=found.dtype, facts=facts), stored=True)
    assert sum(share.nbytes for share in shares) / 1e9 == pytest.approx(gb, rel=0.004), repository


@pytest.mark.parametrize(("weights", "gb"), [("F16", 13.8), ("Q2_K", 11.5), ("Q4_K_M", 11.6), ("Q5_K_M", 11.7), ("Q8_0", 12.1)])
def test_experts_in_mxfp4_stay_so_in_every_gguf_file_type(weights: str, gb: float) -> None:
    """unsloth/gpt-oss-20b-GGUF."""
    answer = estimate("openai/gpt-oss-20b", weights=weights, context_length=1024)
    assert answer.quantities["weights"] / 1e9 == pytest.approx(gb, abs=0.06)


@pytest.mark.parametrize(
    ("model", "gb"), [("moonshotai/Kimi-K2.6", 595), ("moonshotai/Kimi-K2-Thinking", 594), ("openai/gpt-oss-120b", 65.25)]
)
def test_quantised_checkpoints_are_believed(model: str, gb: float) -> None:
    """4-bit as released: unsloth.ai's page on Kimi-K2.6 (Q8, which leaves its 4-bit experts), gpt-oss's index."""
    answer = estimate(model, engine="transformers", context_length=1024)
    assert answer.quantities["weights"] / 1e9 == pytest.approx(gb, rel=0.002)


def test_a_name_tells_the_format_where_the_catalogue_does_not() -> None:
    answer = estimate("nvidia/Qwen3-8B-FP8", context_length=1024)
    assert answer.scenario.weights == "fp8"
    assert answer.quantities["weights"] == estimate("Qwen/Qwen3-8B", weights="fp8", context_length=1024).quantities["weights"]
    assert any("taken as fp8, as it is named" in text for text in answer.assumptions)
