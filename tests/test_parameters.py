"""The judge of the families: every model of the catalogue has exactly the parameters that were counted for it, part by part.

`data/parameters.jsonl` holds counts of the real classes of transformers 5.23 on the meta device, which agree with the published totals
(docs/how-an-estimate-is-made.md says how). None of it is computed by vramplan.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vramplan.catalog.models import all_models
from vramplan.families import model_types, walk
from vramplan.tape import Dim, Tape

KINDS = {
    "embed": "embed",
    "head": "lm_head",
    "linear": "linear",
    "experts": "experts",
    "router": "router",
    "norm": "norm_other",
    "conv": "ssm_conv_other",
    "buffer": "persistent_buffers",
}
ROWS = [json.loads(line) for line in (Path(__file__).parent / "data" / "parameters.jsonl").read_text().splitlines()]
CONFIGS = {entry.id: entry.config for entry in all_models()}
BY_TYPE: dict[str, list[dict[str, Any]]] = defaultdict(list)
for _row in ROWS:
    BY_TYPE[str(CONFIGS[_row["id"]]["model_type"])].append(_row)

# What transformers' module classes call a part and we call another, with the reason.
OTHER_WORDS: Mapping[str, str] = {}


def one_token(config: Mapping[str, object]) -> Tape:
    return walk(Tape(Dim(1, "sequences"), Dim(1, "tokens")), config)


def breakdown(tape: Tape) -> dict[str, int]:
    """Elements by the parts that the reference counts: towers are one, whatever is inside."""
    parts: Counter[str] = Counter()
    for weight in tape.weights:
        parts["vision" if weight.tower and weight.kind != "buffer" else KINDS[weight.kind]] += weight.numel
    return dict(parts)


def test_every_model_of_the_catalogue_is_judged() -> None:
    assert len(ROWS) == len({row["id"] for row in ROWS})
    assert len(ROWS) >= 5980
    unjudged = set(CONFIGS) - {row["id"] for row in ROWS}
    assert len(unjudged) <= 4, unjudged


@pytest.mark.parametrize("model_type", sorted(BY_TYPE))
def test_parameters(model_type: str) -> None:
    wrong = []
    for row in BY_TYPE[model_type]:
        tape = one_token(CONFIGS[row["id"]])
        if tape.parameters != row["params_meta"]:
            wrong.append((row["id"], tape.parameters - row["params_meta"]))
    assert not wrong, f"{len(wrong)} of {len(BY_TYPE[model_type])} {model_type} models are off: {wrong[:5]}"


@pytest.mark.parametrize("model_type", sorted(name for name, rows in BY_TYPE.items() if any("breakdown" in row for row in rows)))
def test_breakdown_and_active_parameters(model_type: str) -> None:
    for row in BY_TYPE[model_type]:
        if "breakdown" not in row:
            continue
        tape = one_token(CONFIGS[row["id"]])
        expected = {name: n for name, n in row["breakdown"].items() if name != "tied_dup"}
        assert breakdown(tape) == expected, row["id"]
        assert tape.active_parameters == row["params_active"], row["id"]


def test_every_family_is_in_the_catalogue() -> None:
    """A family that no model of the catalogue judges would be a claim without proof."""
    unproved = set(model_types()) - set(BY_TYPE)
    assert not unproved, unproved
