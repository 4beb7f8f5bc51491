"""Estimates of one scenario changed in many ways: each is made once, what is refused is no plan, and the order of effort is kept here.

Nothing here knows what a change means; `Tries` is what every question of the planner asks its estimates of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import BadFile, BadInput, NotFound, Unreachable, VramplanError
from ..estimate import Estimate, estimate
from ..scenario import Scenario, scenario
from ..sources.machine import here

Change = Mapping[str, Any]
"""Keys of a scenario with other values."""


def asked_of(model: str | Mapping[str, object] | Scenario, keys: Mapping[str, object]) -> Scenario:
    """The scenario that is meant, as `estimate` reads it, of gpu "auto" what is free now."""
    if isinstance(model, Scenario):
        read = scenario({"model": "any", "task": model.task, **keys})
        asked = replace(model, **{name: getattr(read, name) for name in keys})
    else:
        asked = scenario({**model, **keys} if isinstance(model, Mapping) and "model" in model else {"model": model, **keys})
    return here(asked) if asked.gpu == "auto" else asked


def needs_gpu(asked: Scenario, verb: str) -> None:
    """Raise BadInput for a scenario without anything to fit into."""
    if asked.gpu is None and asked.gpu_memory is None:
        raise BadInput(f"{verb}: name what it is to fit into with --gpu or --gpu-memory")


def rate(answer: Estimate) -> float | None:
    """Tokens in a second: trained, or decoded for all users, of whom there is one where none are asked for; None where it is not known."""
    found = answer.speed
    if found is None:
        return None
    if answer.scenario.task == "train":
        return found.tokens
    return found.decode if answer.job.scenario.sequences else found.alone or found.decode


@dataclass(slots=True)
class Tries:
    """Estimates of `asked` with changes, each made once; `made` counts them."""

    asked: Scenario
    made: int = 0
    _known: dict[str, Estimate | VramplanError] = field(default_factory=dict)

    def answer(self, change: Change) -> Estimate | None:
        """The estimate with that change; None where it is refused."""
        found = self._found(change)
        return found if isinstance(found, Estimate) else None

    def refusal(self, change: Change) -> str | None:
        """Why it is refused; None where it is not."""
        found = self._found(change)
        return None if isinstance(found, Estimate) else str(found)

    def fits(self, change: Change, *, whole: bool = True) -> bool:
        """Whether it fits; without `whole` only whether the peak does, for which the allocator is not asked."""
        answer = self.answer(change)
        if answer is None or answer.headroom is None or answer.headroom < 0:
            return False
        return not whole or answer.fits is True

    def _found(self, change: Change) -> Estimate | VramplanError:
        key = repr(sorted(change.items()))
        if key not in self._known:
            self.made += 1
            try:
                self._known[key] = estimate(replace(self.asked, **change))
            except (BadFile, NotFound, Unreachable):  # nothing of the model or the GPU is known, whatever else is changed
                raise
            except VramplanError as error:
                self._known[key] = error
        return self._known[key]
