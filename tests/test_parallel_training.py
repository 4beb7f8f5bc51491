"""Context parallelism in training: torchtitan's own steps, traced on a fake process group; what holds of any degree; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vramplan import estimate
from vramplan.dim import Dim
from vramplan.errors import BadInput
from vramplan.ledger import Moment
from vramplan.parallel.context import context_parallel, tokens_of
from vramplan.tape import Tape

ROWS = [json.loads(line) for line in (Path(__file__).parents[1] / "data/traced/parallel.jsonl").read_text().splitlines()]
LLAMA = {"model": "meta-llama/Llama-3.1-8B", "task": "train", "engine": "torchtitan", "sharding": "fsdp", "sequence_length": 8192}


def peak(**keys: Any) -> int:
    return int(estimate(**keys).facts["peak_allocated"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['scenario']['model'].split('/')[1]}-{ROWS.index(row)}")
def test_a_rank_takes_what_torchtitan_takes(row: dict[str, Any]) -> None:
    assert peak(**row["scenario"]) == pytest.approx(row["peak"], rel=0.002)


def test_there_are_a_dozen_steps() -> None:
    assert len(ROWS) >= 12


def test_degree_one_is_the_identity() -> None:
    assert peak(**LLAMA, gpu_count=8, context_parallel=1) == peak(**LLAMA, gpu_count=8)
    tape = Tape(Dim(1, "batch"), Dim(8, "tokens"))
    assert context_parallel(tape, 1) is tape


@pytest.mark.parametrize("degree", [2, 4, 8])
def test_the_ranks_keep_what_one_keeps(degree: int) -> None:
    """Of a sequence's activations each rank has its share, and so have weights: FSDP goes over the ranks of one sequence too.

    Each has all of the head and the norm before it, in bf16, and the numbers of all positions.
    """
    keys = {**LLAMA, "sequence_length": 131_072, "gpu_count": 8, "checkpointing": "full"}
    one, many = (estimate(**keys, context_parallel=n).ledger for n in (1, degree))
    assert many.total("weights") == one.total("weights")
    kept = [ledger.total("saved activations", moment=Moment.LOSS) for ledger in (one, many)]
    head, positions = 2 * (128_256 + 1) * 4096, 4 * 131_072 * 128
    assert degree * kept[1] - kept[0] == (degree - 1) * (head + positions)


@pytest.mark.parametrize(("length", "degree", "tokens"), [(8192, 4, 2048), (7, 1, 7), (32, 16, 2)])
def test_a_rank_has_two_pieces(length: int, degree: int, tokens: int) -> None:
    assert tokens_of(length, degree) == tokens


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"gpu_count": 8, "context_parallel": 4, "sequence_length": 8190}, "a multiple of 8; the nearest is 8,184"),
        ({"gpu_count": 6, "context_parallel": 4}, "gpu_count 6: context_parallel 4 does not divide it; the nearest is 3"),
        ({"context_parallel": 2}, "gpu_count 1: context_parallel 2 does not divide it"),
    ],
)
def test_contradictions_name_the_remedy(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(BadInput, match=text):
        estimate(**{**LLAMA, **keys})
