"""The machine interface (docs/interface.md, sections 1 and 2) as JSON schemas, for the HTTP API and whoever checks an answer."""

from __future__ import annotations

from typing import Any

from ..ledger import Moment
from ..readers import MODEL
from ..scenario import keys

COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
MOMENTS = [moment.value for moment in Moment]
QUANTITIES = (
    "parameters", "trainable_parameters", "active_parameters", "weights", "kv_cache", "kv_bytes_per_token", "kv_tokens", "activation_peak",
    "compute_buffer", "cuda_graphs", "non_torch", "peak_allocated", "peak_reserved", "process",
    "first_step", "load_peak", "longest_context",
)  # fmt: skip


def _object(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


ITEM = _object(
    ("path", "nbytes", "alive", "why", "source"),
    path={"type": "array", "items": TEXT, "minItems": 1},
    nbytes={"type": "integer", "minimum": 1},
    alive={"type": "array", "items": {"enum": MOMENTS}, "minItems": 1},
    why=TEXT,
    source=TEXT,
)
GPU = _object(
    ("rank", "count", "name", "capacity", "usable", "peak_moment", "peak", "items"),
    rank=COUNT,
    count=COUNT,
    name={"type": ["string", "null"]},
    capacity={"type": ["integer", "null"]},
    usable={"type": ["integer", "null"]},
    peak_moment={"enum": MOMENTS},
    peak=COUNT,
    items={"type": "array", "items": ITEM, "minItems": 1},
)
ANSWER = _object(
    ("scenario", "assumptions", "quantities", "fits", "headroom", "likelihood", "gpus"),
    scenario={
        **_object(("model", "task", "engine"), model={"type": ["string", "object"]}, gpu_memory=COUNT, context_length=COUNT),
        "propertyNames": {"enum": ["model", *keys()]},
    },
    model=_object(("id", "origin"), id=TEXT, origin=TEXT),
    assumptions={"type": "array", "items": TEXT},
    remarks={"type": "array", "items": TEXT},
    quantities={
        **_object(("parameters", "weights", "kv_cache")),
        "additionalProperties": COUNT,
        "propertyNames": {"enum": list(QUANTITIES)},
    },
    fits={"type": ["boolean", "null"]},
    headroom={"type": ["integer", "null"]},
    likelihood={"type": ["number", "null"], "minimum": 0, "maximum": 1},
    gpus={"type": "array", "items": GPU, "minItems": 1},
    host={"type": "array", "items": ITEM},
    speed={"type": ["object", "null"]},
)


def scenario_schema() -> dict[str, Any]:
    """A scenario, from its own fields: what each key means and which values it takes. Values of null count as left out."""
    properties: dict[str, Any] = {"model": {"description": "catalogue name, or a config.json as an object", **MODEL.schema}}
    for name, about in keys().items():
        taken = about["read"].schema
        properties[name] = {"description": about["help"], "anyOf": [*taken.get("anyOf", [taken]), {"type": "null"}]}
    return {"type": "object", "required": ["model"], "properties": properties, "additionalProperties": False}
