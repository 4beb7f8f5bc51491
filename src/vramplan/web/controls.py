"""Controls of a form, made from the scenario's own fields: their help, choices and limits. Knows no key's meaning but which come first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ..scenario import ENGINES, keys
from .address import text
from .presets import TASK_OF

FIRST = {
    "infer": ("engine", "gpu", "gpu_count", "gpu_memory", "weights", "kv_dtype", "sequences", "context_length"),
    "train": (
        "engine",
        "gpu",
        "gpu_count",
        "gpu_memory",
        "method",
        "precision",
        "micro_batch",
        "sequence_length",
        "checkpointing",
        "optimizer",
    ),
}
"""The keys that a task's form shows at once; the others are folded away in their groups."""

WIDE = ("engine", "gpu_memory")
"""Of these, the ones that take a line of their own, with their help."""

SLIDERS = {"sequences": 1024, "context_length": 1_048_576, "micro_batch": 256, "sequence_length": 131_072, "gpu_count": 64}
"""Keys that are moved, and the largest value that the slider reaches; the field beside it takes what the scenario allows."""

SPELLED = {"gpu": "GPU", "gpus": "GPUs", "kv": "KV", "lora": "LoRA", "ema": "EMA", "fsdp": "FSDP", "swa": "SWA", "moe": "MoE", "cpu": "CPU"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """A field of the form. `kind` is choice, several, text or parts; `value` what the address says, `default` what the engine takes."""

    name: str
    label: str
    help: str
    kind: str
    value: str
    default: str
    choices: Sequence[tuple[str, str]] = ()
    suggestions: str | None = None
    number: bool = False
    wide: bool = False
    slider: int | None = None
    parts: Sequence[Control] = ()


def first(values: Mapping[str, Any], filled: Mapping[str, Any]) -> list[Control]:
    """The controls that the form of these keys shows at once; `filled` has the defaults that an answer took."""
    return [replace(control(name, values, filled), wide=name in WIDE) for name in FIRST[_task(values)]]


def folded(values: Mapping[str, Any], filled: Mapping[str, Any]) -> dict[str, list[Control]]:
    """The other controls that mean something for the task, by group."""
    task, groups = _task(values), dict[str, list[Control]]()
    for name, about in keys().items():
        if name not in (*FIRST[task], "task") and TASK_OF.get(about["group"], task) == task:
            groups.setdefault(about["group"], []).append(control(name, values, filled))
    return groups


def control(name: str, values: Mapping[str, Any], filled: Mapping[str, Any]) -> Control:
    """The control of one key."""
    schema = keys()[name]["read"].schema
    if name == "engine":
        schema = {"enum": ENGINES[_task(values)]}
    return _control(name, keys()[name]["help"], schema, values.get(name), filled.get(name))


def _control(name: str, help: str, schema: Mapping[str, Any], value: Any, default: Any) -> Control:
    plain = schema.get("anyOf", [schema])[0]
    made: dict[str, Any] = {
        "name": name,
        "label": label(name),
        "help": help.replace("`", ""),
        "value": "" if value is None else text(value),
    }
    made["default"] = "" if default is None or value is not None else text(default)
    if plain.get("type") == "object":
        have, took = (found if isinstance(found, Mapping) else {} for found in (value, default))
        inner = [_control(f"{name}.{part}", "", how, have.get(part), took.get(part)) for part, how in plain["properties"].items()]
        return Control(kind="parts", parts=inner, **made)
    choices = [(word, word) for word in plain.get("enum") or plain.get("items", {}).get("enum", ())]
    if plain.get("type") == "boolean":
        choices = [("true", "yes"), ("false", "no")]
        made["default"] = {"true": "yes", "false": "no"}.get(made["default"], "")
    if choices:
        return Control(kind="several" if plain.get("type") == "array" else "choice", choices=choices, **made)
    number = plain.get("type") in ("integer", "number")
    listed = name if name in SUGGESTIONS else None
    return Control(
        kind="text", number=number and name not in ("gpu_memory", "host_memory"), slider=SLIDERS.get(name), suggestions=listed, **made
    )


def label(name: str) -> str:
    """A key as people read it.

    >>> label("gpu_count"), label("lora.rank"), label("kv_dtype")
    ('GPU count', 'Rank', 'KV dtype')
    """
    words = [SPELLED.get(word, word) for word in name.rpartition(".")[2].split("_")]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]])


def _task(values: Mapping[str, Any]) -> str:
    task = str(values.get("task", "infer")).lower()
    return task if task in FIRST else "infer"


def _gpus() -> list[str]:
    from ..catalog.gpus import all_gpus

    return [gpu.id for gpu in all_gpus()]


def _methods() -> list[str]:
    from ..methods import ADAPTERS

    return ["full", *ADAPTERS]


def _objectives() -> list[str]:
    from ..engines.train.objectives import objective_names

    return ["sft", *objective_names()]


def _optimizers() -> list[str]:
    from ..optimizers import optimizer_names

    return list(optimizer_names())


def _formats() -> list[str]:
    from ..formats import scheme_names

    return list(scheme_names())


SUGGESTIONS: Mapping[str, Callable[[], list[str]]] = {
    "gpu": _gpus, "method": _methods, "objective": _objectives, "optimizer": _optimizers, "weights": _formats,
}  # fmt: skip
"""Keys of free text, and the names that the rooms which read them know."""


@cache
def suggestions() -> dict[str, list[str]]:
    """The names to choose from by key."""
    return {name: names() for name, names in SUGGESTIONS.items()}
