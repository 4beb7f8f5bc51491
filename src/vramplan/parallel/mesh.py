"""A mesh of ranks, as Megatron has it: tensor × context × data × pipeline, and over the same ranks another one for the experts.

Dense weights are copied over context and data; experts, whole ones each, over what the expert and pipeline degrees leave (Megatron-Core
0.19 `core/parallel_state.py`, initialize_model_parallel). Over the copies a distributed optimizer is spread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..dim import Dim
from ..errors import BadInput
from ..tensors import Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """How many ranks there are, and over how many each thing is split."""

    ranks: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        """Raise BadInput where the degrees do not divide the ranks."""
        for names in (("tensor", "pipeline", "context"), ("expert", "pipeline")):
            degrees = {name: getattr(self, name) for name in names}
            taken = 1
            for degree in degrees.values():
                taken *= degree
            if self.ranks % taken:
                said = " × ".join(f"{name}_parallel {degree}" for name, degree in degrees.items() if degree > 1)
                near = max(self.ranks // taken, 1) * taken
                raise BadInput(f"gpu_count {self.ranks}: {said} takes a multiple of {taken} GPUs; the nearest is {near}")

    @property
    def data(self) -> int:
        """Ranks with sequences of their own."""
        return self.ranks // (self.tensor * self.pipeline * self.context)

    @property
    def stage(self) -> int:
        """Ranks of one pipeline stage."""
        return self.ranks // self.pipeline

    @property
    def groups(self) -> int:
        """Groups of several ranks that a rank is in, each with a communicator (Megatron-Core 0.19 `core/parallel_state.py`)."""
        copies = self.data * self.context, self.ranks // (self.expert * self.pipeline) if self.expert > 1 else 1
        return sum(size > 1 for size in (self.tensor, self.pipeline, self.context, self.expert, *copies))

    def copies(self, weight: Weight) -> int:
        """Ranks that hold the same part of `weight`."""
        if weight.kind == "experts":
            return self.ranks // (self.expert * self.pipeline)
        return self.data * self.context

    def optimizer_part(self, weights: Iterable[Weight]) -> list[Weight]:
        """A rank's even part of the optimizer, flat, of dense weights and of experts. Padding of buffers, a few KB, is left out.

        Source: Megatron-Core 0.19 `core/optimizer/distrib_optimizer.py`, `core/distributed/param_and_grad_buffer.py`.
        """
        groups: dict[int, list[Weight]] = {}
        for weight in weights:
            groups.setdefault(self.copies(weight), []).append(weight)
        return [_flat(some, over) for over, some in groups.items()]


def _flat(weights: list[Weight], ranks: int) -> Weight:
    elements = sum(weight.numel for weight in weights)
    return replace(weights[0], name="partition", shape=(Dim(-(-elements // ranks), "elements/ranks"),), copies=1, layers=None)
