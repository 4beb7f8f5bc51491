"""vramplan: how much GPU memory an LLM workload takes, before anything is loaded or rented.

>>> import vramplan
>>> answer = vramplan.estimate("meta-llama/Llama-3.1-8B", gpu="rtx-4090", context_length=8192)
>>> answer.fits, answer.quantities["weights"]
(True, 16094076928)
"""

from typing import TYPE_CHECKING, Any

from .errors import BadFile, BadInput, NotFound, Unknown, Unreachable, VramplanError
from .estimate import Estimate, estimate
from .inspect import Inspection, inspect
from .scenario import Scenario, scenario

if TYPE_CHECKING:
    from .planner.buy import buy
    from .planner.fix import fix
    from .planner.largest import maximum
    from .planner.search import plan

__all__ = [
    "BadFile",
    "BadInput",
    "Estimate",
    "Inspection",
    "NotFound",
    "Scenario",
    "Unknown",
    "Unreachable",
    "VramplanError",
    "buy",
    "estimate",
    "fix",
    "inspect",
    "maximum",
    "plan",
    "scenario",
]

_PLANNER = {"buy": "buy", "fix": "fix", "maximum": "largest", "plan": "search"}
"""Functions that are imported when they are asked for: name -> module of `planner`."""


def __getattr__(name: str) -> Any:
    if name not in _PLANNER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".planner.{_PLANNER[name]}", __name__), name)
