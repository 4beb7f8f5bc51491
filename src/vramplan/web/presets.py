"""The tasks that people come with, as a choice of the scenario's keys each; a preset keeps whatever else still means something."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..methods import implied
from ..scenario import keys

TASK_OF = {"Training": "train", "Inference": "infer", "vLLM, SGLang": "infer", "llama.cpp": "infer"}
"""Groups of keys that mean something in one task only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A card of the page: its name, what it is, and the keys that it sets."""

    id: str
    name: str
    about: str
    sets: Mapping[str, str]


PRESETS = (
    Preset(
        id="infer", name="Inference", about="serve it: weights, cache and what the engine takes", sets={"task": "infer"},
    ),
    Preset(id="qlora", name="QLoRA", about="adapters over weights in 4 bits", sets={"task": "train", "method": "qlora"}),
    Preset(id="lora", name="LoRA", about="adapters over frozen weights", sets={"task": "train", "method": "lora"}),
    Preset(id="full", name="Full fine-tuning", about="every weight trains", sets={"task": "train", "method": "full"}),
    Preset(
        id="scratch",
        name="Train from scratch",
        about="every weight, kept in fp32 under autocast",
        sets={"task": "train", "method": "full", "precision": "bf16-mixed"},
    ),
)  # fmt: skip


def applied(values: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """The keys with those of a preset; keys of another task, and the task's engine where the task changes, are left out."""
    chosen = next((one for one in PRESETS if one.id == preset), PRESETS[0])
    task, before = chosen.sets["task"], values.get("task", "infer")
    kept = {name: value for name, value in values.items() if TASK_OF.get(group(name), task) == task}
    if task != before:
        kept.pop("engine", None)
        kept.pop("engine_version", None)
    for name in ("method", "precision", "quantization"):
        kept.pop(name, None)
    return kept | dict(chosen.sets)


def current(values: Mapping[str, Any]) -> str:
    """The preset that the keys are those of."""
    if values.get("task", "infer") == "infer":
        return "infer"
    method = values.get("method") or implied(values.get("quantization"), values.get("lora"))
    if method == "full":
        return "scratch" if values.get("precision") == "bf16-mixed" else "full"
    return str(method)


def group(name: str) -> str:
    """The group that a key of the scenario belongs to."""
    return str(keys()[name]["group"]) if name in keys() else ""
