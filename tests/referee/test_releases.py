"""What transformers did by version, judged by its releases: `data/traced/versions.jsonl`, measured by `scripts/measure_versions.py`.

Small models, on a CPU. Left out are rows of sdpa with dropout, for which a CPU has no kernel. What the tape does not note, to the byte: the
labels that the loss keeps, and the number it divides by. What it notes and a release does not make: positions and token types as tensors of
each sequence, where BERT's are buffers and others' are of one.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vramplan.dim import Dim
from vramplan.engines.train.transformers_versions import Behaviour, behaviour
from vramplan.families import walk
from vramplan.kernels import Kernels
from vramplan.methods import Full
from vramplan.ops.loss import cross_entropy
from vramplan.sweep import sweep
from vramplan.tape import Tape

ROWS = [json.loads(line) for line in (Path(__file__).parents[2] / "data" / "traced" / "versions.jsonl").read_text().splitlines()]
DROPS = ("gpt2", "bert", "roberta")
JUDGED = [row for row in ROWS if not (row["attention"] == "sdpa" and row["model_type"] in DROPS)]
PARTIAL = ("stablelm",)
"""Rotates a quarter of each head; the tape's tables are as wide as a head."""


def name(row: dict[str, Any]) -> str:
    return "-".join(str(row[key]) for key in ("transformers", "model_type", "head", "attention") if row[key])


def kernels(did: Behaviour, attention: Any) -> Kernels:
    return Kernels(
        attention=attention,
        logits=did.logits,
        kv=did.kv,
        layout=did.layout,
        rotary=did.rotary,
        experts=did.experts,
        padding_mask=did.padding_mask,
    )


def tape(row: dict[str, Any]) -> Tape:
    did = behaviour(row["transformers"], row["model_type"])
    made = Tape(Dim(row["batch"], "sequences"), Dim(row["tokens"], "tokens"), kernels=kernels(did, row["attention"]))
    made.method, made.head = Full(), row["head"]
    walk(made, {**row["config"], "model_type": row["model_type"]})
    loss = did.loss
    if row["head"]:
        loss = replace(loss, shifts_logits=False, upcast=loss.upcast and row["head"] == "mlm")
    cross_entropy(made, made.ops[-1].writes[0], loss)
    return made


def half_of_statistics(made: Tape) -> int:
    """What CPU layer norms save less: bf16 for mean and reciprocal deviation."""
    return sum(tensor.nbytes // 2 * tensor.saved for tensor in made.tensors if tensor.name.endswith(".stats"))


def unnoted(row: dict[str, Any], did: Behaviour) -> int:
    """The loss's labels (int64; a masked language model's are its inputs here) and the number that it divides by, in the logits'
    precision; scalars in bf16 that are tensors: Gemma's multiplier of embeddings, GPT-2's divisor of scores in each layer.
    """
    b, s = row["batch"], row["tokens"]
    labels = {"classification": b, "mlm": 0}.get(row["head"], b * (s - did.loss.shifts_logits))
    scalars = {"gemma": 2, "gpt2": 2 * 3}.get(row["model_type"], 0)
    return labels * 8 + (4 if did.loss.upcast and not row["head"] else 2) + scalars


def ids_too_many(row: dict[str, Any], made: Tape) -> int:
    """Positions (and token types) that are noted for each sequence."""
    each, one = row["batch"] * row["tokens"] * 8, row["tokens"] * 8
    if row["model_type"] == "bert":
        return 2 * each
    if row["model_type"] == "roberta":
        return each
    return each - one if row["model_type"] == "gpt2" else 0


@pytest.mark.parametrize("row", JUDGED, ids=name)
def test_saved_for_backward(row: dict[str, Any]) -> None:
    made, did = tape(row), behaviour(row["transformers"], row["model_type"])
    ours = made.saved_bytes - half_of_statistics(made) + unnoted(row, did) - ids_too_many(row, made)
    if row["model_type"] in PARTIAL:
        assert ours == pytest.approx(row["saved"], rel=0.01)
    else:
        assert ours == row["saved"]


@pytest.mark.parametrize("row", [row for row in JUDGED if row["head"] != "classification"], ids=name)
def test_peak_of_forward_and_backward(row: dict[str, Any]) -> None:
    """Within 1 % above and 0.1 % below."""
    swept = sweep(tape(row), gradient_itemsize=lambda weight: 2)
    ours = max(swept.forward.nbytes, swept.backward.nbytes)
    assert -0.001 <= ours / row["peak"] - 1 <= 0.01


@pytest.mark.parametrize("row", [row for row in ROWS if row["attention"] == "eager" and row["model_type"] not in PARTIAL], ids=name)
def test_buffers_of_rotary_tables(row: dict[str, Any]) -> None:
    """All but the inverse frequencies, one row of 2 bytes for each pair of a head's dimensions, and GPT-2's constants."""
    ours = sum(weight.numel * 2 for weight in tape(row).weights if weight.kind == "buffer")
    assert 0 <= row["buffers"] - ours <= 128
