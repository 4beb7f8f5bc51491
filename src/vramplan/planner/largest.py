"""`max`: the largest context, batch, rank or number of users that fits, exact to one; and the frontier of batch and length.

Each is found by doubling and bisection over whole estimates, and one more does not fit: what breaks then is said. It does not know of
islands: where something fits again above a number that does not, the number below is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..bisection import most_twice, until
from ..errors import BadInput, nearest
from ..estimate import Estimate
from ..scenario import Scenario
from ..units import gib
from .held import for_users, held
from .trying import Change, Tries, asked_of, needs_gpu

END = 2**31 - 1
"""The largest number that a scenario takes."""
LENGTHS = tuple(512 << n for n in range(12))
"""Of the frontier's rows, as far as the model goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Largest:
    """The largest `value` of a `key` that fits, None where not even one does; `beyond` says why one more does not.

    `answer` is the estimate at that value, or of the least value where nothing fits.
    """

    of: str
    key: str
    value: int | None
    beyond: str
    answer: Estimate | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data."""
        answer = self.answer if self.value is not None else None
        return {
            "of": self.of,
            "key": self.key,
            "value": self.value,
            "beyond": self.beyond,
            "quantities": dict(answer.quantities) if answer else None,
            "headroom": answer.headroom if answer else None,
            "likelihood": answer.likelihood if answer else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """What can be made larger: its key in a scenario, and the change that sets it to a number."""

    key: str
    change: Callable[[Scenario, int], Change]
    now: Callable[[Scenario], int | None]
    users: bool = False


def _plain(key: str) -> Axis:
    return Axis(key=key, change=lambda s, n: {key: n}, now=lambda s: getattr(s, key))


def _rank(asked: Scenario) -> int | None:
    rank = (asked.lora or {}).get("rank")
    return rank if isinstance(rank, int) else None


AXES: Mapping[str, Mapping[str, Axis]] = {
    "train": {
        "batch": _plain("micro_batch"),
        "context": _plain("sequence_length"),
        "rank": Axis(key="lora", change=lambda s, n: {"lora": {**(s.lora or {}), "rank": n}}, now=_rank),
    },
    "infer": {
        "context": _plain("context_length"),
        "concurrency": Axis(key="sequences", change=lambda s, n: for_users(s, s.engine, n), now=lambda s: s.sequences, users=True),
    },
}
"""Task -> name -> axis."""


def axes(asked: Scenario) -> tuple[str, ...]:
    """What there is to ask for with a scenario: a rank where there are adapters, users where their length is given."""
    adapters = asked.lora is not None or asked.method not in (None, "full") or asked.quantization is not None
    there = {"rank": adapters, "concurrency": asked.context_length is not None}
    return tuple(name for name in AXES[asked.task] if there.get(name, True))


def _settled(asked: Scenario) -> Scenario:
    """With the engine that runs it, on which the axes depend."""
    needs_gpu(asked, "max")
    answer = Tries(asked).answer({})
    return replace(asked, engine=answer.scenario.engine) if answer else asked


def maximum(model: str | Mapping[str, object] | Scenario, of: str | None = None, **keys: object) -> Largest:
    """The largest `of` (context, batch, rank, concurrency) with which a scenario fits; by default the batch to train, the context to serve.

    Raises BadInput for something that cannot be made larger, and what `estimate` raises where the scenario is wrong at every number.
    """
    asked = _settled(asked_of(model, keys))
    of = of or next(iter(AXES[asked.task]))
    of = "concurrency" if (of, asked.task) == ("batch", "infer") else of
    if of not in axes(asked):
        hint = "name --context" if of == "concurrency" else f"there is {', '.join(axes(asked))}{nearest(of, axes(asked))}"
        raise BadInput(f"max {of!r}: for task {asked.task!r} {hint}")
    return _largest(Tries(asked), of, AXES[asked.task][of])


def _largest(tries: Tries, of: str, axis: Axis, start: int | None = None) -> Largest:
    def change(n: int) -> Change:
        return axis.change(tries.asked, n)

    def holds(n: int, whole: bool) -> bool:
        answer = tries.answer(change(n))
        return tries.fits(change(n), whole=whole) and (not axis.users or (answer is not None and held(answer) >= n))

    first = start or axis.now(tries.asked) or 1
    end = until(lambda n: holds(n, False), first, END)
    low = end // 2 if end > first and holds(end // 2, True) else 0
    value = most_twice(holds, end if end == END else end - 1, low)
    if not value and (refused := tries.refusal(change(first))) and tries.refusal(change(1)):
        raise BadInput(refused)
    answer = tries.answer(change(value or 1))
    return Largest(of=of, key=axis.key, value=value or None, beyond=_beyond(tries, change(value + 1), axis), answer=answer)


def _beyond(tries: Tries, change: Change, axis: Axis) -> str:
    """What breaks with one more."""
    answer = tries.answer(change)
    if answer is None:
        return tries.refusal(change) or ""
    if answer.headroom is not None and answer.headroom < 0:
        return f"{gib(-answer.headroom)} would be missing"
    return "the cache would not hold them all" if axis.users and answer.fits else "the allocator would find no piece large enough"


def frontier(model: str | Mapping[str, object] | Scenario, **keys: object) -> Iterator[tuple[int, int]]:
    """Of each length, 512 and its doubles, the largest batch (users to serve) that fits, one after the other until none does."""
    asked = _settled(asked_of(model, keys))
    batch, length = ("batch", "context") if asked.task == "train" else ("concurrency", "context")
    along = AXES[asked.task]
    before: int | None = None
    for tokens in LENGTHS:
        found = replace(asked, **along[length].change(asked, tokens))
        try:
            made = _largest(Tries(found), batch, along[batch], start=max((before or 2) // 2, 1))
        except BadInput:
            return
        if made.value is None:
            return
        before = made.value
        yield tokens, made.value
