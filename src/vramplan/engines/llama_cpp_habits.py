"""Where llama.cpp's own graph of an architecture goes another way than the checkpoint's code, which the tape follows.

Source: llama.cpp 0.5.0 `src/models/`, the file of each architecture.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..sources.model import Model

STREAM_FIRST = "a sum names the stream first, and so is computed over it"
SECOND_FIRST = "a layer's second sum does, its first does not"
ROWS_LAST = "the rows that give an output are taken after the last norm, not in the last layer"
FOLDED = "multipliers are part of the weights: conversion multiplies them in"
SLICES = "inputs of each layer are cut out of one tensor that has them layer by layer"

HABITS: Mapping[str, frozenset[str]] = {
    "falcon_h1": frozenset({FOLDED}),
    "gemma4": frozenset({ROWS_LAST, SLICES}),
    "gemma4_text": frozenset({ROWS_LAST, SLICES}),
    "jamba": frozenset({STREAM_FIRST}),
    "lfm2": frozenset({STREAM_FIRST}),
    "lfm2_moe": frozenset({STREAM_FIRST}),
    "nemotron_h": frozenset({ROWS_LAST}),
    "phi3": frozenset({SECOND_FIRST}),
    "phimoe": frozenset({SECOND_FIRST}),
    "qwen3_5": frozenset({ROWS_LAST}),
    "qwen3_5_moe": frozenset({ROWS_LAST}),
    "qwen3_next": frozenset({ROWS_LAST}),
}
"""By `model_type`: what an architecture does, in the words above."""


def habits(model: Model) -> frozenset[str]:
    """Those of a model, or of its language model."""
    types = (str(config.get("model_type")) for config in (model.config, model.text))
    return frozenset().union(*(HABITS.get(name, ()) for name in types))
