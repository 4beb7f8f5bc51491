"""torchtitan on one GPU: steps of its own Llama, loss and checkpointing, traced; what its checkpointing keeps; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vramplan import BadInput, Unknown, estimate, scenario
from vramplan.ledger import Moment

TRACED = Path(__file__).parent.parent / "data" / "traced" / "kernels.jsonl"
ROWS = [row for row in map(json.loads, TRACED.read_text().splitlines()) if row["scenario"]["engine"] == "torchtitan"]
LLAMA = "meta-llama/Llama-3.1-8B"
TOKENS, WIDTH, HEADS, KEYS, MLP, VOCAB, LAYERS = 8192, 4096, 32, 1024, 14336, 128_256, 32


def of(**keys: object) -> Any:
    return estimate(**{"model": LLAMA, "task": "train", "engine": "torchtitan", "sequence_length": TOKENS, **keys})  # type: ignore[arg-type]


def name(row: dict[str, Any]) -> str:
    s = row["scenario"]
    return "-".join((s["model"].split("/")[-1], s["precision"], str(s["micro_batch"]), s.get("checkpointing", "selective")))


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_peak(row: dict[str, Any]) -> None:
    ours, traced = estimate(scenario(row["scenario"])).facts["peak_allocated"], row["peak"]
    assert ours == pytest.approx(traced, rel=0.0001), f"{ours:,} against {traced:,}: {ours / traced - 1:+.3%}"


def test_selective_keeps_attention_and_every_second_product() -> None:
    """Beside its input in fp32 a layer keeps, in bf16, the products q, v, gate and down (the first, third, fifth and seventh), and
    attention's output with a log-sum-exp for each head and token; not k, o and up.
    """
    kept = 2 * (WIDTH + KEYS + MLP + WIDTH + WIDTH) + 4 * HEADS
    selective, full = (of(checkpointing=kind).ledger.total("saved activations", moment=Moment.LOSS) for kind in ("selective", "full"))
    assert selective - full == TOKENS * LAYERS * kept


def test_its_defaults() -> None:
    """fp32 weights, fp32 states, the head a matrix of its own."""
    answer = of()
    s = answer.scenario
    assert (s.precision, s.checkpointing, s.optimizer, s.loss) == ("bf16-mixed", "selective", "adamw-fused", "plain")
    assert answer.ledger.total("weights") == 4 * 8_030_261_248  # as torchtitan prints: "8,030,261,248 total parameters"
    assert of(model="meta-llama/Llama-3.2-1B").ledger.total("weights") == 4 * (1_235_814_400 + VOCAB * 2048)


def test_before_0_2_keys_and_values_were_repeated() -> None:
    """And a norm, then not one kernel, kept the normed x in fp32: per token and layer two of those, and 2 · 32 heads instead of 2 · 8."""
    new, old = (of(checkpointing="none", engine_version=version).ledger.total("saved activations") for version in ("0.2.2", "0.1"))
    assert old - new == TOKENS * (LAYERS * (2 * 4 * WIDTH + 2 * 2 * (WIDTH - KEYS)) + 4 * WIDTH)


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ({"engine_version": "0.3.1"}, Unknown, "wraps one GPU in FSDP"),
        ({"model": "google/gemma-3-1b-it"}, Unknown, "not its model for 'gemma3_text'"),
        ({"model": "Qwen/Qwen3-0.6B"}, Unknown, "a head that is the embedding is not estimated"),
        ({"method": "lora"}, Unknown, "method 'lora'"),
        ({"precision": "bf16"}, Unknown, "bf16-mixed, fp8-mixed"),
        ({"compile": True, "checkpointing": "none"}, Unknown, "Inductor"),
        ({"tensor_parallel": 8}, BadInput, "tensor_parallel 8 does not divide it"),
        ({"model": "deepseek-ai/DeepSeek-V2-Lite", "gpu_count": 8, "context_parallel": 2}, Unknown, "deepseek_v2 is not estimated"),
        ({"model": "deepseek-ai/DeepSeek-V2-Lite", "gpu_count": 8, "expert_parallel": 3}, BadInput, "the nearest is"),
        ({"model": "Qwen/Qwen3-30B-A3B", "gpu_count": 8, "expert_parallel": 2, "sharding": "hsdp"}, Unknown, "fsdp is"),
        ({"model": "Qwen/Qwen3-30B-A3B", "gpu_count": 8, "precision": "fp32"}, Unknown, "whose products are in bf16"),
        ({"model": "Qwen/Qwen3-30B-A3B", "gpu_count": 8, "tensor_parallel": 2}, Unknown, "with torchtitan's experts is not estimated"),
        ({"gpu_count": 8, "expert_parallel": 2}, BadInput, "has no experts"),
        ({"loss": "chunked"}, Unknown, "before 0.1 only, not in 0.2.2"),
        ({"loss": "cut"}, Unknown, "are plain, compiled, chunked"),
        ({"optimizer": "adamw-8bit"}, Unknown, "torchtitan has adamw-fused"),
        ({"checkpoint_every": 2}, BadInput, "checkpointing full"),
        ({"precision": "fp8-mixed", "gpu": "a100-sxm-80gb"}, BadInput, "compute capability 8.9"),
    ],
)
def test_what_is_refused(keys: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        of(**keys)
    assert "\n" not in str(caught.value)


def test_a_compiled_layer_keeps_nothing_that_backward_does_not_ask_for() -> None:
    """A layer's last product goes into the next layer's input only: 202412 tables of torchtitan, 82.4 -> 77.0 GiB at batch 2."""
    eager, compiled = (of(checkpointing="selective", compile=on, loss="plain").ledger.total("saved activations") for on in (False, True))
    assert eager - compiled == pytest.approx(TOKENS * LAYERS * 2 * WIDTH, rel=1e-4)


def test_a_compiled_loss_keeps_the_logits_as_they_are() -> None:
    plain, compiled = (of(compile=True, loss=loss, checkpointing="full").ledger.at(Moment.LOSS) for loss in ("plain", "compiled"))
    assert plain - compiled == TOKENS * (VOCAB * (4 + 4) - 2 * 4)  # fp32 logits and log-probabilities, less two numbers of each row
