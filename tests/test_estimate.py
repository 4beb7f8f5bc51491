"""The answer as a whole: what a scenario's keys do to it, its JSON and back, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest

import vramplan
from vramplan import BadInput, NotFound, Unknown, estimate
from vramplan.units import GiB

LLAMA = "meta-llama/Llama-3.1-8B"
CONFIG = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 1000, "max_position_embeddings": 4096,
}  # fmt: skip

SCENARIOS: list[dict[str, Any]] = [
    {"model": LLAMA, "gpu": "rtx-4090", "context_length": 8192},
    {"model": "openai/gpt-oss-20b", "gpu": "rtx-4090"},
    {"model": LLAMA, "weights": "Q4_K_M", "gpu": "rtx-3090", "kv_dtype": {"k": "q8_0", "v": "q4_0"}, "sequences": 4},
    {
        "model": LLAMA,
        "weights": "nf4",
        "double_quant": True,
        "engine": "transformers",
        "gpu": "rtx-3060",
        "prompt_length": 100,
        "output_length": 50,
    },
    {"model": "deepseek-ai/DeepSeek-V3", "gpu": "h200"},
    {"model": "moonshotai/Kimi-K2.5"},
    {"model": "google/gemma-3-27b-it", "gpu_memory": "24GB", "engine": "llama.cpp"},
    {"model": CONFIG, "engine": "transformers"},
    {"model": "ai21labs/AI21-Jamba-Mini-1.5", "engine": "llama.cpp", "weights": "Q8_0", "flash_attention": False},
]


@pytest.mark.parametrize("given", SCENARIOS, ids=lambda given: str(given["model"])[:24])
def test_the_filled_in_scenario_gives_the_same_answer(given: dict[str, Any]) -> None:
    """Through JSON and back: every default that was filled in is accepted, and is what the answer was made with.

    Only the assumptions are fewer: they are about what the scenario left out.
    """
    first = {**estimate(vramplan.scenario(given)).to_dict(), "assumptions": []}
    again = {**estimate(vramplan.scenario(json.loads(json.dumps(first))["scenario"])).to_dict(), "assumptions": []}
    assert again == first


@pytest.mark.parametrize("given", SCENARIOS, ids=lambda given: str(given["model"])[:24])
def test_quantities_are_sums_of_the_items(given: dict[str, Any]) -> None:
    data = estimate(vramplan.scenario(given)).to_dict()
    gpu = data["gpus"][0]
    alive = [item for item in gpu["items"] if gpu["peak_moment"] in item["alive"]]
    assert sum(item["nbytes"] for item in alive) == gpu["peak"]
    assert sum(item["nbytes"] for item in alive if item["path"][0] == "weights") == data["quantities"]["weights"]
    assert all(item["why"] and item["source"] and item["nbytes"] > 0 for item in gpu["items"])
    assert data["headroom"] == (None if gpu["usable"] is None else gpu["usable"] - gpu["peak"])


def test_a_model_of_one_tensor_by_hand() -> None:
    """CONFIG: per layer q, o 64 × 64, k, v 32 × 64, three of 128 × 64, two norms of 64; twice 1,000 × 64; the last norm."""
    parameters = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 128 * 64 + 2 * 64) + 2 * 1000 * 64 + 64
    answer = estimate(CONFIG, engine="transformers", prompt_length=10, context_length=10)
    assert answer.quantities["parameters"] == parameters
    assert answer.quantities["weights"] == 2 * parameters
    assert answer.quantities["kv_cache"] == 10 * 2 * 2 * 2 * 16 * 2
    assert (answer.fits, answer.headroom, answer.gpu, answer.room) == (None, None, None, None)


@pytest.mark.parametrize(
    ("dtype", "weights", "size"),
    [("float32", None, 4), ("torch.float16", None, 2), (None, None, 2), ("float32", "bf16", 2), ("bfloat16", "fp32", 4)],
)
def test_weights_are_stored_as_asked_or_as_the_config_says(dtype: str | None, weights: str | None, size: int) -> None:
    answer = estimate({**CONFIG, "torch_dtype": dtype}, engine="transformers", weights=weights)
    assert answer.quantities["weights"] == size * answer.quantities["parameters"]


def test_a_checkpoint_s_own_quantisation_is_believed_and_weights_override_it() -> None:
    """DeepSeek-V3: FP8 with a scale for each block of 128 × 128; what is not a linear layer is bf16."""
    own, asked = (estimate("deepseek-ai/DeepSeek-V3", engine="transformers", **given) for given in ({}, {"weights": "bf16"}))
    correction = 58 * 256  # biases of the routers, fp32 buffers
    assert asked.quantities["weights"] == 2 * 671_026_404_352 + 4 * correction
    assert 671_026_404_352 < own.quantities["weights"] < 1.005 * 671_026_404_352
    assert (own.scenario.weights, asked.scenario.weights) == (None, "bf16")
    assert "weights as the checkpoint stores them, fp8" in own.assumptions


def test_deepseek_v3_s_files_are_what_loads_and_the_layer_that_predicts_a_second_token() -> None:
    """641.3 GiB of files: model.safetensors.index.json says 688,586,727,753 bytes, headers included."""
    hidden, experts, ffn, vocab = 7168, 257, 2048, 129280
    fp8 = {
        (1536, hidden): 1,
        (24576, 1536): 1,
        (576, hidden): 1,
        (32768, 512): 1,
        (hidden, 16384): 1,
        (ffn, hidden): 2 * experts,
        (hidden, ffn): experts,
    }
    scales = sum(4 * -(-rows // 128) * -(-cols // 128) * n for (rows, cols), n in fp8.items())
    bf16 = 2 * vocab * hidden + hidden * 2 * hidden + 256 * hidden
    mtp = sum(rows * cols * n for (rows, cols), n in fp8.items()) + scales + 2 * bf16
    files = estimate("deepseek-ai/DeepSeek-V3", engine="transformers").quantities["weights"] + mtp
    assert files / GiB == pytest.approx(641.3, abs=0.05)
    assert 0 < 688_586_727_753 - files < 30_000_000


def test_double_quantisation_saves_most_of_the_constants() -> None:
    """QLoRA (arXiv:2305.14314, section 3): 0.5 bits a parameter become 0.127."""
    one, two = (estimate(LLAMA, weights="nf4", double_quant=on).quantities["weights"] for on in (False, True))
    quantised = 32 * (4096 * 4096 * 2 + 2 * 1024 * 4096 + 3 * 14336 * 4096)
    assert (one - two) * 8 / quantised == pytest.approx(0.5 - 0.127, abs=0.001)


def test_gpu_memory_overrides_the_card_s_and_alone_is_a_card() -> None:
    card, less, unnamed = (
        estimate(LLAMA, engine="transformers", **given)
        for given in ({"gpu": "rtx-4090"}, {"gpu": "rtx-4090", "gpu_memory": "16GiB"}, {"gpu_memory": "16GiB"})
    )
    assert card.room == 24052 * 2**20
    assert less.room == unnamed.room == 16 * GiB
    assert (less.gpu.name, unnamed.gpu.name) == ("GeForce RTX 4090", "unnamed GPU")  # type: ignore[union-attr]
    assert (card.fits, less.fits) == (True, False)


def test_a_config_given_inline_can_be_a_multimodal_one() -> None:
    answer = estimate(
        {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", **{k: v for k, v in CONFIG.items() if k != "model_type"}}},
        engine="vllm",
        context_length=1024,
    )
    assert answer.ledger.total("weights", "vision tower") > 0


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"model": LLAMA, "gpu": "rtx 4091"}, NotFound, "did you mean 'rtx 4090'|did you mean 'rtx-4090'|did you mean"),
        ({"model": LLAMA, "weights": "Q4_K_X"}, NotFound, "did you mean 'Q4_K_M'|did you mean"),
        ({"model": LLAMA, "kv_dtype": "fp7"}, BadInput, "fp7"),
        ({"model": LLAMA, "context_length": 131073}, BadInput, "greater than the derived max_model_len 131,072"),
        ({"model": "meta-llama/Llama-3.1-9B-Instruct-Imaginary"}, vramplan.VramplanError, "Llama-3.1"),
        ({"model": "lama 3.1 8b"}, NotFound, "did you mean|nearest|Llama"),
        ({"model": "./nothing.gguf"}, NotFound, "nothing.gguf"),
        ({"model": {"model_type": "lama"}}, Unknown, "did you mean 'llama'"),
        ({"model": {"hidden_size": 1}}, BadInput, "model_type"),
        ({"model": {**CONFIG, "hidden_size": -64}}, BadInput, "'hidden_size' is -64"),
        ({"model": {**CONFIG, "hidden_size": "64"}}, BadInput, "'hidden_size' is '64'"),
        ({"model": {**CONFIG, "num_hidden_layers": 10**9}}, BadInput, "num_hidden_layers"),
        ({"model": {**CONFIG, "quantization_config": [1]}}, BadInput, "quantization_config must be an object"),
        ({"model": {**CONFIG, "quantization_config": {"quant_method": "gptqq"}}}, Unknown, "did you mean 'gptq'"),
        ({"model": LLAMA, "engine": "llama.cpp", "kv_dtype": {"k": "q8_0", "v": "nope"}}, BadInput, "nope"),
    ],
)
@pytest.mark.usefixtures("offline")
def test_what_is_wrong_is_said_in_one_line(given: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as refused:
        estimate(vramplan.scenario(given))
    assert "\n" not in str(refused.value)


def test_it_shows_itself() -> None:
    answer = estimate(LLAMA, gpu="rtx-4090", context_length=8192)
    assert str(answer).startswith("Fits: 17.80 GiB of 21.67 GiB on GeForce RTX 4090")
    html = answer._repr_html_()
    assert html.count("<tr>") == len([i for i in answer.ledger.items if answer.peak[0] in i.alive]) + 2
    assert "<script" not in estimate({**CONFIG, "model_type": "llama"}, engine="transformers")._repr_html_()
