"""The optimizer in a training step: its states, what its step takes, master weights, clipping, and an average of the weights.

It knows neither activations nor the order of the step's phases.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import BadInput
from ...ledger import Item, Moment
from ...optimizers import Optimizer, optimizer
from ...optimizers.clipping import SOURCE as CLIPPED
from ...optimizers.clipping import clipping
from ...optimizers.master import MASTER
from ...tensors import Weight
from ...units import gib
from ..job import Job
from .recipe import FLOATS, Recipe

TRAINING = frozenset({Moment.FORWARD, Moment.LOSS, Moment.BACKWARD, Moment.STEP})
LOADED = TRAINING | {Moment.LOAD}


class Stepping:
    """The optimizer of a recipe over its trained weights."""

    def __init__(self, job: Job, recipe: Recipe, trained: Sequence[Weight], norm: int = 0) -> None:
        """`norm`: bytes that the wrapper's own norm of gradients takes. Raises BadInput for choices that the optimizer does not have."""
        self.recipe, self.trained, self.norm = recipe, trained, norm
        dtype = job.scenario.optimizer_dtype
        if dtype and {self.size(weight) for weight in trained} == {FLOATS.get(dtype)}:
            dtype = None  # the weights' own: no choice
        wide = recipe.framework.wide_embeddings
        self.optimizer: Optimizer = optimizer(recipe.optimizer, dtype=dtype, rank=job.scenario.optimizer_rank, wide_embeddings=wide)
        self.in_backward = bool(job.scenario.optimizer_in_backward) or self.optimizer.in_backward
        self.averaged = bool(job.scenario.ema)
        self.count = sum(weight.numel for weight in trained)
        if self.in_backward and recipe.passes > 1:
            raise BadInput(
                f"optimizer_in_backward with gradient_accumulation {recipe.passes}: a gradient is gone when its weight has stepped"
            )
        if self.in_backward and recipe.mixed.master:
            raise BadInput(f"optimizer_in_backward with precision {recipe.precision!r}: its wrapper steps over all weights at once")

    def size(self, weight: Weight) -> int:
        """Bytes of an element of what the optimizer steps on."""
        return self.recipe.mixed.master or self.recipe.size(weight)

    @property
    def gradients(self) -> int:
        """Bytes of the weights' own gradients that wait for the step."""
        waits = not self.in_backward and not (self.recipe.mixed.master and not self.recipe.framework.master.own)
        return sum(weight.numel * self.recipe.gradient(weight) for weight in self.trained) if waits else 0

    @property
    def adds(self) -> bool:
        """Whether a gradient is added to something that is there from the beginning of each step."""
        master = self.recipe.framework.master
        return (
            self.recipe.framework.zeroes_gradients
            or self.recipe.sharing.views
            or (bool(self.recipe.mixed.master) and (master.zeroed or not master.own))
        )

    def temporary_of(self, weight: Weight) -> int:
        """Bytes that the step of one weight takes inside the backward pass."""
        return self.optimizer.temporary_of(weight, self.size(weight))

    @property
    def early(self) -> bool:
        """Whether the states are there before the first step's optimizer: made by it, by the wrapper, or weight by weight in backward."""
        return self.in_backward or self.optimizer.early or bool(self.recipe.mixed.master and self.recipe.framework.master.early)

    def resident(self) -> list[int]:
        """Bytes of what is there before the first step, beside the weights."""
        beside = [item.nbytes for item in (*self._master(), *self._average())]
        if not (self.recipe.framework.zeroes_gradients or self.recipe.sharing.views):
            return beside
        return [
            *beside,
            *(weight.numel // weight.repeats * self.recipe.gradient(weight) for weight in self.trained for _ in range(weight.repeats)),
        ]

    def states(self) -> list[int]:
        """Bytes of each state that torch's allocator keeps."""
        return [block for weight in self.trained for _ in range(weight.repeats) for block in self.optimizer.kept(weight, self.size(weight))]

    def step(self) -> tuple[int, Sequence[int]]:
        """Most bytes that a step over all weights takes, and the tensors that it has then made."""
        if self.in_backward:
            return 0, ()
        made = self.optimizer.step(self.trained, self.size)
        if self.recipe.mixed.master:
            master = self.recipe.framework.master
            alone = [[weight] for weight in self.trained] if master.apart else [self.trained]
            most = max(master.step(sum(w.numel for w in some), self.optimizer.step(some, self.size).most) for some in alone)
            return most, (most,)
        return made.most, made.blocks

    def items(self) -> list[Item]:
        """States, the master copy, the averaged weights, and what the step makes and frees."""
        source, items = self.optimizer.source, []
        why = f"{self.recipe.optimizer} for {self.count:,} trained parameters"
        states = sum(self.optimizer.states(weight, self.size(weight)) for weight in self.trained)
        items.append(Item(path=("optimizer states",), nbytes=states, alive=TRAINING, why=why, source=source))
        items += [*self._master(), *self._average()]
        if not self.in_backward:
            items.append(self._step())
        return [item for item in items if item.nbytes]

    def _average(self) -> list[Item]:
        if not self.averaged:
            return []
        copy = sum(weight.numel * self.recipe.size(weight) for weight in self.trained)
        why, source = "a running average of every trained weight", "pytorch 2.13 torch/optim/swa_utils.py, AveragedModel"
        return [Item(path=("ema weights",), nbytes=copy, alive=TRAINING, why=why, source=source)]

    def _master(self) -> list[Item]:
        if not self.recipe.mixed.master:
            return []
        master = self.recipe.framework.master
        parts = {("weights", "fp32 master"): MASTER, ("gradients", "buffer"): master.buffer}
        return [
            Item(
                path=path,
                nbytes=each * self.count,
                alive=TRAINING,
                why=f"{each} B for {self.count:,} trained parameters",
                source=master.source,
            )
            for path, each in parts.items()
        ]

    def _step(self) -> Item:
        master = self.recipe.framework.master
        taken, why, source = self.step()[0], "made and freed by the step", self.optimizer.source
        clipped = clipping(self.trained, self.recipe.gradient) if self.recipe.framework.clips else self.norm
        if clipped > taken:
            taken, why, source = clipped, "norms of gradients, to clip them", master.source if self.norm else CLIPPED
        return Item(path=("optimizer step",), nbytes=taken, alive=frozenset({Moment.STEP}), why=why, source=source)

    def remarks(self) -> list[str]:
        """What a user should know beside the figures."""
        paged = sum(self.optimizer.paged(weight, self.size(weight)) for weight in self.trained)
        return [f"{gib(paged)} of optimizer states are paged: managed memory, on the GPU as far as there is room"] if paged else []
