"""An estimate on another GPU without making it anew, where nothing in it depends on the card but how much room there is.

So it is in training, but for what `depends` names: the framework's own needs by compute capability. What is shared is byte for byte what
`estimate` says (`tests/test_buy.py`); serving engines size pools, graphs and workspaces by the card and are estimated each time.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from functools import cache

from ..catalog.gpus import Gpu
from ..estimate import Estimate
from ..scenario import Scenario
from .trying import Change, Tries

ALIKE = ("transformers", "torchtune", "litgpt", "torchtitan")
"""Training frameworks whose items do not depend on the size of the card."""


def depends(gpu: Gpu, asked: Scenario) -> Hashable:
    """What of a card a training estimate depends on beside its room: cuBLAS's workspace on Hopper, and FP8, go by compute capability."""
    return gpu.compute_capability if asked.precision == "fp8-mixed" else gpu.compute_capability == "9.0"


@dataclass(slots=True)
class Cards:
    """Estimates of a scenario on many cards; what is the same on several is made once."""

    tries: Tries
    _made: dict[Hashable, Estimate] = field(default_factory=dict)
    _fits: dict[Hashable, bool | None] = field(default_factory=dict)

    def on(self, gpu: Gpu, name: str, change: Change) -> Estimate | None:
        """The estimate on a GPU, by the `name` that a scenario has for it; None where it is refused."""
        asked = self.tries.asked
        if asked.task != "train" or (asked.engine or "transformers") not in ALIKE or asked.generation:
            return self.tries.answer({**change, "gpu": name})
        key = (repr(sorted(change.items())), depends(gpu, asked))
        first = self._made.get(key)
        if first is None:
            first = self.tries.answer({**change, "gpu": name})
            if first is None:
                return None
            first = self._made[key] = replace(first, events=cache(first.events) if first.events else None)
        return self._moved(first, gpu, name, key)

    def _moved(self, first: Estimate, gpu: Gpu, name: str, key: Hashable) -> Estimate:
        shares = tuple(replace(share, gpu=gpu, room=gpu.usable) for share in first.shares)
        job = replace(first.job, gpu=gpu, gpus=tuple(gpu for _ in first.job.gpus), scenario=replace(first.job.scenario, gpu=name))
        made = replace(first, scenario=replace(first.scenario, gpu=name), job=job, gpu=gpu, room=gpu.usable, shares=shares)
        if made.headroom is not None and made.headroom >= 0:
            vars(made)["reserved"] = first.reserved
        return made

    def fits(self, answer: Estimate) -> bool:
        """Whether it does; the allocator is asked once for each room."""
        alike = (id(answer.events), answer.room)
        if answer.events is None:
            return answer.fits is True
        if alike not in self._fits:
            self._fits[alike] = answer.fits
        vars(answer)["fits"] = self._fits[alike]
        return self._fits[alike] is True
