"""What an optimizer is, as far as memory goes: what it keeps for each trained weight, and what its step makes and frees.

A step is Python: a loop over weights, whose local variables hold the tensors of one turn until the next turn binds the same names. So the
most bytes of a step can be more than those of its largest weight. `Locals` plays that. It knows no model, engine or GPU.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..tensors import Weight

Itemsize = Callable[[Weight], int]

BLOCK = 512
"""The smallest block of torch's allocator (`kMinBlockSize`, c10/cuda/CUDACachingAllocator.cpp): what a tensor of one element takes."""


class Locals:
    """Bytes of local variables: a name holds its tensor until it is bound again. `most` is the largest sum that there was."""

    def __init__(self) -> None:
        self.held: dict[str, int] = {}
        self.now = self.most = 0
        self.blocks: list[int] = []
        """The tensors that made up the largest sum."""

    def use(self, *nbytes: int) -> None:
        """Tensors of an expression, alive together, that nothing holds."""
        now = self.now + sum(nbytes)
        if now > self.most:
            self.most, self.blocks = now, [block for block in (*self.held.values(), *nbytes) if block]

    def bind(self, name: str, nbytes: int, *beside: int) -> None:
        """`name = expression`: the tensor is made, with those `beside` it on the way, before the old one of that name goes."""
        self.use(nbytes, *beside)
        self.now += nbytes - self.held.get(name, 0)
        self.held[name] = nbytes

    def free(self, nbytes: int) -> None:
        """What was there before the step goes."""
        self.now -= nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer(ABC):
    """`source` says whose code, at which version; one with `in_backward` steps a weight as soon as its gradient is there, and one that is
    `early` makes its states before the first step.

    `itemsize` is bytes of a weight's element; a gradient has the same. A weight is as many tensors as it has layers; experts are one.
    """

    source: str
    in_backward: bool = False
    early: bool = False

    @abstractmethod
    def kept(self, weight: Weight, itemsize: int) -> Sequence[int]:
        """Bytes of each state that torch's allocator keeps for one tensor of `weight`, from the first step on."""

    @abstractmethod
    def turn(self, names: Locals, weight: Weight, itemsize: int) -> None:
        """What the step makes for one tensor of `weight`."""

    def paged(self, weight: Weight, itemsize: int) -> int:
        """Bytes of states of `weight` in managed memory, which torch's allocator does not see and the driver moves to the host."""
        return 0

    def states(self, weight: Weight, itemsize: int) -> int:
        """Bytes that torch's allocator keeps for `weight` in all its layers."""
        return sum(self.kept(weight, itemsize)) * weight.repeats

    def order(self, weights: Iterable[Weight]) -> Iterable[Weight]:
        """The weights as the step comes to them."""
        return in_order(weights)

    def step(self, weights: Iterable[Weight], itemsize: Itemsize) -> Locals:
        """A step over all `weights`."""
        names = Locals()
        for weight in self.order(weights):
            self.turn(names, weight, itemsize(weight))
        return names

    def temporary(self, weights: Iterable[Weight], itemsize: Itemsize) -> int:
        """Most bytes that a step over all `weights` takes beside what it keeps."""
        return self.step(weights, itemsize).most

    def temporary_of(self, weight: Weight, itemsize: int) -> int:
        """The same of a step over one tensor of `weight` alone, as it is taken inside the backward pass."""
        names = Locals()
        self.turn(names, weight, itemsize)
        return names.most


class AtOnce(Optimizer):
    """An optimizer whose step runs each operation over all weights before the next (torch's foreach): all its tensors live together."""

    __slots__ = ()

    def step(self, weights: Iterable[Weight], itemsize: Itemsize) -> Locals:
        together = Locals()
        blocks: list[int] = []
        for weight in weights:
            names = Locals()
            self.turn(names, weight, itemsize(weight))
            blocks += names.blocks * weight.repeats
        together.use(*blocks)
        return together


def elements(weight: Weight) -> int:
    """Elements of one tensor: a weight of one layer, with all its experts."""
    return weight.numel // weight.repeats


def in_order(weights: Iterable[Weight]) -> Iterator[Weight]:
    """The weights one by one as a step comes to them: layer by layer, two layers standing for all like them; norms and biases last.

    So are parameters grouped by transformers' Trainer (`get_decay_parameter_names`), nanoGPT and most loops: those with weight decay first.
    """
    some = list(weights)
    for late in (False, True):
        group = [weight for weight in some if (len(weight.shape) < 2) is late]
        for layers, alike in groupby(group, key=lambda weight: weight.layers):
            kind = list(alike)
            yield from kind * min(len(layers or (0,)), 2)
