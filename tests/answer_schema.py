"""docs/interface.md, section 2, as a JSON schema: bytes and counts are integers, nothing beside the documented keys but additions."""

from __future__ import annotations

from typing import Any

from vramplan.scenario import keys

COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
TEXT: dict[str, Any] = {"type": "string", "minLength": 1}
QUANTITIES = (
    "parameters", "trainable_parameters", "active_parameters", "weights", "kv_cache", "kv_bytes_per_token", "kv_tokens", "activation_peak",
    "compute_buffer", "cuda_graphs", "non_torch", "peak_allocated", "peak_reserved", "process",
    "first_step", "load_peak", "longest_context",
)  # fmt: skip
MOMENTS = ("load", "profile", "prefill", "decode", "generate", "forward", "reference", "loss", "backward", "step")


def _object(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


ITEM = _object(
    ("path", "nbytes", "alive", "why", "source"),
    path={"type": "array", "items": TEXT, "minItems": 1},
    nbytes={"type": "integer", "minimum": 1},
    alive={"type": "array", "items": {"enum": list(MOMENTS)}, "minItems": 1},
    why=TEXT,
    source=TEXT,
)
GPU = _object(
    ("rank", "name", "capacity", "usable", "peak_moment", "items"),
    rank=COUNT,
    name={"type": ["string", "null"]},
    capacity={"type": ["integer", "null"]},
    usable={"type": ["integer", "null"]},
    peak_moment={"enum": list(MOMENTS)},
    items={"type": "array", "items": ITEM, "minItems": 1},
)
ANSWER = _object(
    ("scenario", "assumptions", "quantities", "fits", "headroom", "likelihood", "gpus"),
    scenario={
        **_object(("model", "task", "engine"), model={"type": ["string", "object"]}, gpu_memory=COUNT, context_length=COUNT),
        "propertyNames": {"enum": ["model", *keys()]},
    },
    assumptions={"type": "array", "items": TEXT},
    quantities={
        **_object(("parameters", "weights", "kv_cache", "process")),
        "additionalProperties": COUNT,
        "propertyNames": {"enum": list(QUANTITIES)},
    },
    fits={"type": ["boolean", "null"]},
    headroom={"type": ["integer", "null"]},
    likelihood={"type": ["number", "null"], "minimum": 0, "maximum": 1},
    gpus={"type": "array", "items": GPU, "minItems": 1},
)
