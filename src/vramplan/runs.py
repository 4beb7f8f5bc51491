"""Runs: one layer of each kind, and what is outside the layers, in the order in which they run; what an event of one is.

Their events are made by `forward.py` and `backward.py`, over all runs they are summed by `sweep.py`. It knows shapes only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from .tape import Tape
from .tensors import Op, Tensor

Key = tuple[str, int]
"""What an event is about, and its identity: `t` a tensor, `p` one that is pinned, `g` a gradient of one, `w` a weight's gradient, `x` what
lives within one op. With several ranks (`parallel/sharded.py`): `u` a unit that they gathered from each other, `a` what they gather it in,
`f` a flat one, `l` the one of the run after, which is not gone yet, `s` a rank's part of gradients."""
GATHERED = "uafl"
"""Kinds of what is gathered from other ranks, or on its way to them."""
Event = tuple[Literal["make", "free", "hold"], int, Key, int]
"""What happens, at which op of the run, to what, and its bytes. `hold` keeps a tensor beyond its own `free`."""
END: Key = ("g", 0)
"""The gradient of a run's output, which the run after it made."""


def never(_: Op) -> bool:
    """No op's output is kept."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointing:
    """Layers that keep their input only and run forward again before their backward pass (Chen et al. 2016, arXiv:1604.06174).

    `every`: each k-th layer does, the others keep everything. `keeps`: ops whose outputs are kept too (selective checkpointing, torch
    `utils/checkpoint.py` create_selective_checkpoint_contexts). `offloaded`: the kept inputs lie in host memory. `stops`: a layer runs
    again as far as backward needs (torch's early stop), or to its end. With `first` so many layers do, from the first on, else all.
    """

    every: int = 1
    first: int = 0
    keeps: Callable[[Op], bool] = never
    offloaded: bool = False
    stops: bool = True


@dataclass(slots=True)
class Run:
    """One run of a kind of layer, or of what is outside the layers: its events, and their sums in bytes.

    It keeps `kept` until its backward pass, `cached` until the forward pass ends, `once` one time for all runs, and `offloaded` in host
    memory; a checkpointed layer's `rebuild` is part of its `backward`. `entry` is the tensor that it starts from; `outlasting` are
    those of its last run that the backward pass of what comes after needs; `ahead` are gradients, by the tensors that they are of, which
    wait for a run that is older than the one that goes before.
    """

    ops: Sequence[Op]
    first: int
    times: int
    own: Sequence[Tensor]
    checkpointed: bool
    entry: Tensor
    forward: list[Event] = field(default_factory=list)
    rebuild: list[Event] = field(default_factory=list)
    backward: list[Event] = field(default_factory=list)
    outlasting: list[Tensor] = field(default_factory=list)
    entry_gradient: Key | None = None
    ahead: dict[int, tuple[Key, int]] = field(default_factory=dict)
    kept: int = 0
    once: int = 0
    cached: int = 0
    offloaded: int = 0
    gradients: int = 0

    def keeps(self, tensor: Tensor) -> bool:
        """Whether the backward pass of each run needs its own `tensor`."""
        return tensor.saved >= self.times or (tensor.pinned and not self.checkpointed)

    @property
    def end(self) -> Tensor:
        """Its output: that of its last op that a gradient comes to, else of the last."""
        return next((op.writes[0] for op in reversed(self.ops) if op.writes[0].grad), self.ops[-1].writes[0])

    @property
    def spared(self) -> int:
        """Bytes of what the first of the runs need not keep: no gradient passes there, or its input is kept where it was made."""
        source = self.entry.follows or self.entry
        if self.checkpointed:
            elsewhere = source is not self.entry or all(t is not source for t in self.own)
            return self.entry.nbytes if source.saved and elsewhere and not self.offloaded else 0
        kept = [t for t in self.own if self.keeps(t) and (t.spared or (t is self.entry and source.saved and source is not t))]
        return sum(t.nbytes for t in kept)


Runs = Sequence[tuple[Run, int]]
"""A tape's pieces in their order, each with how often it runs on end."""


def runs_of(tape: Tape, checkpointing: Checkpointing | None) -> Runs:
    """The tape's pieces in order, with how often each runs on end: of every k layers, the last is checkpointed.

    A checkpointed layer through which no gradient passes keeps nothing, as without.
    """
    by_birth: dict[int, list[Tensor]] = {}
    for tensor in tape.tensors:
        by_birth.setdefault(tensor.born, []).append(tensor)
    runs: list[tuple[Run, int]] = []
    left = checkpointing.first if checkpointing else 0
    for _, group in groupby(enumerate(tape.ops), key=lambda pair: pair[1].region):
        some = list(group)
        first, ops = some[0][0], [op for _, op in some]
        own = [tensor for index, _ in some for tensor in by_birth.get(index, ())]
        times, entry = ops[0].repeats, ops[0].reads[0].storage
        plain, recomputed = (Run(ops, first, times, own, checkpointed, entry) for checkpointed in (False, True))
        if checkpointing is None or not ops[0].in_layers or not plain.end.grad:
            runs.append((plain, times))
        elif checkpointing.first:
            some_layers = min(left, times)
            left -= some_layers
            runs += [(run, n) for run, n in ((recomputed, some_layers), (plain, times - some_layers)) if n]
        elif checkpointing.every == 1:
            runs.append((recomputed, times))
        else:
            runs += [(plain, checkpointing.every - 1), (recomputed, 1)] * (times // checkpointing.every)
            runs += [(plain, times % checkpointing.every)] * (times % checkpointing.every > 0)
    return runs if checkpointing and (checkpointing.every > 1 or checkpointing.first) else _interleaved(runs)


def _interleaved(runs: Runs) -> Runs:
    """Layers of a list that are of several kinds, each walked once, in the order in which they stand."""
    ordered: list[tuple[Run, int]] = []
    for name, group in groupby(runs, key=lambda pair: _layers(pair[0])[0]):
        kinds = list(group)
        places = sorted((place, kind) for kind, (run, _) in enumerate(kinds) for place in _layers(run)[1])
        same = [list(some) for _, some in groupby(places, key=lambda place: place[1])]
        ordered += [(kinds[some[0][1]][0], len(some)) for some in same] if name and len(kinds) > 1 else kinds
    return ordered


def _layers(run: Run) -> tuple[str, tuple[int, ...]]:
    """The list whose layers a run stands for, and their places in it."""
    weight = next((w for op in run.ops for w in op.weights if w.layers), None)
    return ("", ()) if weight is None else (weight.name.partition("{i}")[0], weight.layers or ())
