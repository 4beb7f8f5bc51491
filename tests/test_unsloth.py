"""Unsloth on one GPU: its functions judged by a trace of themselves, its loss by the arithmetic of its tiles, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vramplan import BadInput, Unknown, estimate, scenario
from vramplan.kernels import Kernels
from vramplan.ledger import Moment
from vramplan.methods import Frozen
from vramplan.ops import embed, head
from vramplan.ops.fused_loss import unsloth
from vramplan.tape import Dim, Tape

TRACED = Path(__file__).parent.parent / "data" / "traced" / "kernels.jsonl"
ROWS = [row for row in map(json.loads, TRACED.read_text().splitlines()) if row["scenario"]["engine"] == "unsloth"]
LLAMA = "meta-llama/Llama-3.1-8B"


def of(**keys: object) -> Any:
    return estimate(LLAMA, task="train", engine="unsloth", **{"sequence_length": 2048, **keys})


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['scenario']['model']}-{row['scenario']['sequence_length']}")
def test_backward_pass(row: dict[str, Any]) -> None:
    """Without checkpointing and without its loss, which was stood in for: all that its norms, attention and MLP keep and make."""
    ledger = estimate(scenario(row["scenario"])).ledger
    ours = ledger.at(Moment.BACKWARD) - ledger.total("cuda context")
    assert ours == pytest.approx(row["peak"], rel=0.0002)


def frozen(rows: int, hidden: int, vocab: int) -> Tape:
    """A frozen model of an embedding, whose output needs a gradient, and a head."""
    tape = Tape(Dim(1, "batch"), Dim(rows, "tokens"), kernels=Kernels(logits="all"), method=Frozen())
    x, _ = embed(tape, "embed", vocab, hidden)
    x.grad = True
    head(tape, x, "head", vocab)
    return tape


@pytest.mark.parametrize(
    ("tokens", "vocab", "memory", "logits"),
    [
        (8193, 128_256, None, 4096 * 16384),  # 4,096 rows at once, in tiles of 256 MiB
        (2049, 128_256, 24 << 30, 2048 * 16384),  # a small card's tiles have 16,384 columns
        (2049, 128_256, 80 << 30, 512 * 128_256),  # fewer than 4,096 rows on a large one: 512 × 151,936 logits' worth of rows
        (8193, 32_000, None, 2048 * 32_000),  # too few tokens for tiles: the same, in powers of two
    ],
)
def test_loss_makes_fp32_logits_of_a_tile(tokens: int, vocab: int, memory: int | None, logits: int) -> None:
    tape = frozen(tokens, 4096, vocab)
    unsloth(tape, memory)
    chunk = {4096 * 16384: 4096, 2048 * 16384: 2048, 512 * 128_256: 512, 2048 * 32_000: 2048}[logits]
    parts = 8 * -(-vocab // 16384) * chunk if logits % 16384 == 0 and vocab > 32768 and logits != 512 * 128_256 else 0
    assert tape.ops[-1].workspace == 4 * (logits + chunk * 4096 + parts) + 16 * (tokens - 1)
    assert [t.nbytes for t in tape.ops[-1].keeps] == [tokens * 4096 * 2]


def test_layers_inputs_go_to_the_host() -> None:
    """32 inputs of 2 × 2,048 × 4,096 in bf16; two buffers for them stay, and the last one does not go."""
    one = 2 * 2048 * 4096 * 2
    answer = of(micro_batch=2)
    assert answer.ledger.total("activations", "staging", moment=Moment.STEP) == 2 * one
    assert answer.ledger.total("activations", "last input", moment=Moment.FORWARD) == one
    assert any("1.00 GiB of layers' inputs lie in host memory" in remark for remark in answer.remarks)


def test_qlora_is_its_default_with_double_quantisation() -> None:
    answer = of()
    asked = answer.scenario
    assert (asked.method, asked.optimizer, asked.loss) == ("qlora", "adamw-8bit", "fused")
    assert answer.quantities["trainable_parameters"] == 41_943_040  # as Unsloth prints for rank 16 on Llama-3.1-8B
    assert answer.ledger.total("workspace", "unpacked") == 4096 * 14336 * 2
    assert answer.ledger.total("weights") < of(double_quant=False).ledger.total("weights")


@pytest.mark.parametrize(
    ("keys", "error", "words"),
    [
        ({"method": "full"}, Unknown, "method 'full'"),
        ({"lora": {"targets": ["q_proj", "v_proj"]}}, Unknown, "all seven projections"),
        ({"lora": {"dropout": 0.1}}, Unknown, "without dropout"),
        ({"engine_version": "2024.8"}, Unknown, "since 2026.10"),
        ({"model": "google/gemma-2-2b"}, Unknown, "model types"),
        ({"compile": True}, Unknown, "compile"),
        ({"trained_modules": ["lm_head"]}, Unknown, "a head that trains"),
        ({"engine_version": "new"}, BadInput, "write it as"),
    ],
)
def test_what_is_refused(keys: dict[str, object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        estimate(scenario({"model": LLAMA, "task": "train", "engine": "unsloth", "sequence_length": 512, **keys}))
    assert "\n" not in str(caught.value)
