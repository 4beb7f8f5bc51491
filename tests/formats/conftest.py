"""Walked models for the format tests: configs of released models, cut to what a walk needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from vramplan.dim import Dim
from vramplan.families import walk
from vramplan.formats.gguf_facts import ModelFacts, model_facts
from vramplan.tape import Tape

HERE = Path(__file__).parent


@cache
def _configs() -> dict[str, dict[str, Any]]:
    """Source: config.json of each repository on the Hugging Face Hub."""
    return {row["id"]: row["config"] for row in map(json.loads, (HERE / "models.jsonl").read_text().splitlines())}


@cache
def _walked(model: str) -> tuple[Tape, ModelFacts]:
    config = _configs()[model]
    tape = walk(Tape(Dim(1, "sequences"), Dim(1, "tokens")), config)
    heads = config["num_attention_heads"]
    facts = model_facts(
        tape.weights,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        model_type=config["model_type"],
        qk_nope=config.get("qk_nope_head_dim", 128),
        v_dim=config.get("v_head_dim", 128),
    )
    return tape, facts


@pytest.fixture
def walked() -> Callable[[str], tuple[Tape, ModelFacts]]:
    """A model's tape and facts, by repository id."""
    return _walked
