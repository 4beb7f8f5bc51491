"""What a trace came to: the peaks of its steps, what they consist of, and what the caching allocator makes of the events.

No torch here: a result is numbers and names.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..allocator import ALLOC, FREE, MARK, Event, Replay, block_size, replay
from ..ledger import Item, Ledger, Moment, ledger

MOMENTS = {"load": Moment.LOAD, "forward": Moment.FORWARD, "loss": Moment.LOSS, "backward": Moment.BACKWARD, "step": Moment.STEP}
CATEGORIES = (
    *("weights", "cast weights", "gradients", "optimizer states", "inputs", "saved activations"),
    *("recomputed activations", "temporaries", "workspace"),
)
"""What a block can be, in the order shown. *Saved activations* were made in the forward pass or the loss and are alive when the backward
pass begins (the logits among them, which the caller holds); *recomputed* ones were made by a module's forward within the backward pass;
*cast weights* are autocast's copies; *temporaries* are the rest; *workspace* is what kernels take."""


@dataclass(slots=True)
class Block:
    """One allocation: bytes asked for, the operator, module and phase (a number) that made it, whether a module's forward ran.

    `category` is empty where it follows from when the block was made and freed.
    """

    nbytes: int
    op: str
    module: str
    phase: int
    in_module: bool
    category: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """Most bytes allocated at once, each block rounded up to 512 bytes.

    `at` counts the events until then; `op` and `module` made the last block.
    """

    nbytes: int
    at: int
    step: int
    moment: str
    op: str
    module: str
    categories: Mapping[str, int]
    modules: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """`events` are what allocator.replay takes; `phases` are (step, moment) in order, from (0, "load")."""

    name: str
    events: Sequence[Event]
    blocks: Sequence[Block]
    phases: Sequence[tuple[int, str]]
    kernels: Mapping[str, int]
    guesses: Mapping[str, int]
    assumptions: Sequence[str] = ()

    @cached_property
    def maxima(self) -> Mapping[tuple[int, str], tuple[int, int]]:
        """(step, moment) -> its most bytes, and how many events it took to get there."""
        found: dict[tuple[int, str], tuple[int, int]] = {}
        now, phase = 0, (0, "load")
        for at, (kind, number, _) in enumerate(self.events, 1):
            if kind == MARK:
                phase = self.phases[number]
            else:
                now += self._size(number) if kind == ALLOC else -self._size(number)
            if now > found.get(phase, (-1, 0))[0]:
                found[phase] = now, at
        return found

    def peak_of(self, step: int | None = None, moment: str | None = None) -> Peak:
        """The peak of a step (0 is the first), or of a moment of it, or of all. Raises KeyError where there is none."""
        there = {k: v for k, v in self.maxima.items() if (step is None or k[0] == step) and (moment is None or k[1] == moment)}
        if not there:
            raise KeyError((step, moment))
        (in_step, in_moment), (nbytes, at) = max(there.items(), key=lambda pair: pair[1][0])
        last = next((self.blocks[n] for kind, n, _ in reversed(self.events[:at]) if kind == ALLOC), None)
        live = self._alive(at)
        categories: Counter[str] = Counter()
        modules: Counter[str] = Counter()
        for number in live:
            categories[self.category(number)] += self._size(number)
            modules[part(self.blocks[number].module)] += self._size(number)
        return Peak(
            nbytes=nbytes,
            at=at,
            step=in_step,
            moment=in_moment,
            op=last.op if last else "",
            module=last.module if last else "",
            categories={c: categories[c] for c in CATEGORIES if categories[c]},
            modules=dict(modules.most_common()),
        )

    @cached_property
    def peak(self) -> Peak:
        """The peak of all steps."""
        return self.peak_of()

    @cached_property
    def steady(self) -> Peak:
        """The peak of the last whole step, when the optimizer's states are there from its beginning."""
        return self.peak_of(self.last_step)

    @property
    def last_step(self) -> int:
        """The last step whose optimizer ran (the last one begun, where none did)."""
        return max((step for step, moment in self.phases if moment == "step"), default=max((step for step, _ in self.phases), default=0))

    def timeline(self, points: int) -> Sequence[tuple[int, str, int]]:
        """(step, moment, most bytes) of `points` stretches of equally many events."""
        found: list[tuple[int, str, int]] = []
        now, phase, most = 0, (0, "load"), 0
        stretch = max(len(self.events) // points, 1)
        for at, (kind, number, _) in enumerate(self.events, 1):
            if kind == MARK:
                phase = self.phases[number]
            else:
                now += self._size(number) if kind == ALLOC else -self._size(number)
            most = max(most, now)
            if at % stretch == 0 or at == len(self.events):
                found.append((*phase, most))
                most = now
        return found

    @property
    def peak_allocated(self) -> int:
        """`torch.cuda.max_memory_allocated()`, but for remainders of blocks that the allocator does not split."""
        return self.peak.nbytes

    @cached_property
    def reserved(self) -> Replay:
        """What the caching allocator comes to with its default settings."""
        return replay(self.events)

    @cached_property
    def reserved_expandable(self) -> Replay:
        """What it comes to with `expandable_segments:True`."""
        return replay(self.events, expandable=True)

    @property
    def peak_reserved(self) -> int:
        """`torch.cuda.max_memory_reserved()`, simulated."""
        return self.reserved.max_reserved

    def fits(self, capacity: int, *, expandable: bool = False) -> bool:
        """Whether the allocator finds room for every event within `capacity` bytes."""
        return replay(self.events, capacity=capacity, expandable=expandable).out_of_memory_at is None

    def category(self, number: int) -> str:
        """What block `number` is: one of CATEGORIES."""
        block = self.blocks[number]
        if block.category:
            return block.category
        moment = self.phases[block.phase][1]
        if moment in ("forward", "loss"):
            born, died = self._lives[number]
            next_backward = bisect_left(self._backwards, born)
            kept = next_backward < len(self._backwards) and self._backwards[next_backward] < died
            return "saved activations" if kept else "temporaries"
        return "recomputed activations" if moment == "backward" and block.in_module else "temporaries"

    def ledger(self, step: int | None = None) -> Ledger:
        """The peak of each moment of a step (the last one), as line items by category and part of the model."""
        step = self.last_step if step is None else step
        lines: dict[tuple[tuple[str, ...], int], set[Moment]] = {}
        for moment, name in MOMENTS.items():
            if (step, moment) in self.maxima:
                by: Counter[tuple[str, str]] = Counter()
                for number in self._alive(self.maxima[step, moment][1]):
                    by[self.category(number), part(self.blocks[number].module)] += self._size(number)
                for path, nbytes in by.items():
                    lines.setdefault((tuple(p for p in path if p), nbytes), set()).add(name)
        order = {category: n for n, category in enumerate(CATEGORIES)}
        return ledger(
            Item(path=path, nbytes=nbytes, alive=frozenset(moments), why="blocks alive at the peak of the moment", source="traced")
            for (path, nbytes), moments in sorted(lines.items(), key=lambda line: (order[line[0][0][0]], -line[0][1]))
        )

    def _size(self, number: int) -> int:
        return block_size(self.blocks[number].nbytes)

    @cached_property
    def _lives(self) -> Sequence[tuple[int, int]]:
        """(event at which it was made, event at which it was freed) of every block."""
        born, died = [0] * len(self.blocks), [len(self.events)] * len(self.blocks)
        for at, (kind, number, _) in enumerate(self.events):
            if kind != MARK:
                (born if kind == ALLOC else died)[number] = at
        return list(zip(born, died, strict=True))

    @cached_property
    def _backwards(self) -> Sequence[int]:
        return [at for at, (kind, number, _) in enumerate(self.events) if kind == MARK and self.phases[number][1] == "backward"]

    def _alive(self, at: int) -> Sequence[int]:
        live: dict[int, None] = {}
        for kind, number, _ in self.events[:at]:
            if kind == ALLOC:
                live[number] = None
            elif kind == FREE:
                del live[number]
        return list(live)


_WRAPPERS = re.compile(
    r"^(base_model\.model\.)+|\.base_layer$|\.(lora_[AB]|lora_\w+)(\.\w+)*$|\.modules_to_save(\.\w+)*$|\.original_module$"
)
_NUMBER = re.compile(r"\.\d+(?=\.|$)")


def part(module: str) -> str:
    """A module's name without the numbers of repeated layers and without PEFT's wrappers.

    >>> part("base_model.model.model.layers.17.mlp.up_proj.lora_A.default")
    'model.layers.*.mlp.up_proj'
    """
    name, before = module, None
    while name != before:
        before, name = name, _WRAPPERS.sub("", name)
    return _NUMBER.sub(".*", name)
