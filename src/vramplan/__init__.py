"""vramplan: how much GPU memory an LLM workload takes, before anything is loaded or rented.

>>> import vramplan
>>> answer = vramplan.estimate("meta-llama/Llama-3.1-8B", gpu="rtx-4090", context_length=8192)
>>> answer.fits, answer.quantities["weights"]
(True, 16094076928)
"""

from .errors import BadFile, BadInput, NotFound, Unknown, Unreachable, VramplanError
from .estimate import Estimate, estimate
from .inspect import Inspection, inspect
from .scenario import Scenario, scenario

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
    "estimate",
    "inspect",
    "scenario",
]
