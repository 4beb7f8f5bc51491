"""The OpenAPI 3.1 document, made from the scenario's fields and the answer's schema; examples are answered, not written."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from ..catalog.gpus import all_gpus
from ..catalog.models import search_models
from ..report.schema import ANSWER, scenario_schema
from .api import ANSWERS, MORE, MOST_CHARACTERS, MOST_MODELS

ABOUT = {
    "estimate": "The memory that a scenario takes, what it consists of, and whether it fits.",
    "plan": "Complete plans that fit, best first.",
    "fix": "What makes a scenario fit, cheapest first.",
    "max": "The largest that fits.",
    "buy": "GPUs that fit, by price.",
}
PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {"type": {"type": "string"}, "title": {"type": "string"}, "status": {"type": "integer"}, "detail": {"type": "string"}},
}
REFUSALS = {
    "400": "the request is wrong: the detail names what is allowed",
    "404": "no such name, with the nearest",
    "413": "the body is larger than is read",
    "422": "right, but not estimated: refused rather than guessed",
    "503": "too much is asked at once, or it takes too long",
}
TEXT = {"type": "string", "maxLength": MOST_CHARACTERS}


@cache
def document() -> Mapping[str, Any]:
    """The whole document."""
    paths: dict[str, Any] = {}
    for name in ANSWERS:
        schema = {"$ref": "#/components/schemas/Answer"} if name == "estimate" else {"type": "object"}
        wish = asked(name) if name in MORE else {"$ref": "#/components/schemas/Scenario"}
        body = {
            "required": True,
            "content": {"application/json": {"schema": wish, "example": _example(name)}},
        }
        paths[f"/api/v1/{name}"] = {
            "get": _operation(f"{name}_get", ABOUT[name], schema, parameters=_query(name)),
            "post": _operation(name, ABOUT[name], schema, requestBody=body),
        }
    found = {"type": "array", "items": {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}}
    words = {"name": "q", "in": "query", "description": "words that a name holds", "schema": TEXT}
    limit = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": MOST_MODELS, "default": 20}}
    paths["/api/v1/models"] = {"get": _operation("models", "Models of the catalogue.", _of(models=found), parameters=[words, limit])}
    paths["/api/v1/gpus"] = {"get": _operation("gpus", "GPUs of the catalogue.", _of(gpus=found), parameters=[words])}
    paths["/api/v1/inspect"] = {"post": _inspect()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vramplan",
            "version": version("vramplan"),
            "description": "How much GPU memory an LLM workload takes. Bytes are integers. The Python client is the package itself.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": {"Scenario": scenario_schema(), "Answer": ANSWER, "Problem": PROBLEM}},
    }


def asked(name: str) -> dict[str, Any]:
    """What can be asked of the answer `name`: a scenario, and what is asked beside it."""
    schema = scenario_schema()
    return {**schema, "properties": {**schema["properties"], **{key: reader.schema for key, reader in MORE.get(name, {}).items()}}}


def _operation(id: str, about: str, answer: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    refusals = {code: {"description": why, "content": problem} for code, why in REFUSALS.items()}
    answered = {"description": "answered", "content": {"application/json": {"schema": answer}}}
    unchanged = {"description": "not changed since the ETag that was sent"}
    return {"operationId": id, "summary": about, **more, "responses": {"200": answered, "304": unchanged, **refusals}}


def _of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _query(name: str) -> list[dict[str, Any]]:
    """The same as parameters of a query; in an address every value is text, which the same readers read."""
    properties, value = asked(name)["properties"], {"type": "string", "minLength": 1}
    return [
        {"name": key, "in": "query", "required": key == "model", "description": about.get("description", key), "schema": value}
        for key, about in properties.items()
    ]


def _inspect() -> dict[str, Any]:
    """What a header is of: the one request whose body is no JSON."""
    name = {"name": "name", "in": "query", "description": "what the file is called", "schema": TEXT}
    body = {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    answer = _of(name={"type": "string"}, address={"type": ["string", "null"]}, detail={"type": "string"})
    return _operation("inspect", "A config.json, or the header of a GGUF or safetensors file.", answer, parameters=[name], requestBody=body)


def _example(name: str) -> dict[str, Any]:
    """A scenario that is answered, of the model and the card that the catalogue names first."""
    wish = {"model": search_models("", 1)[0].id, "task": "infer", "context_length": 512}
    return wish if name == "buy" else {**wish, "gpu": all_gpus()[0].id}
