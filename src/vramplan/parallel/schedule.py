"""Pipeline schedules in training: of which micro-batches a stage holds activations, at each of its passes.

A stage has one chunk of layers, or several when they are interleaved: then micro-batches go through chunk after chunk, as many at a time as
there are stages. Its last micro-batches, where it only empties, are left out: it never holds more then. What it does not know: schedules
that bring chunks of a stage together otherwise (ZB-V, DualPipe), and how long a pass takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import BadInput

SCHEDULES = {
    "gpipe": "Huang et al. 2019, arXiv:1811.06965",
    "1f1b": "Megatron-Core 0.19 core/pipeline_parallel/schedules.py, forward_backward_pipelining_without_interleaving",
    "interleaved": "Megatron-Core 0.19 core/pipeline_parallel/schedules.py, get_pp_rank_microbatches",
    "zero-bubble": "Qi et al. 2024, arXiv:2401.10241, ZB-H1",
}
"""Names of the schedules, with who describes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass of a stage, `forward` or back, through `chunk`; `others` are micro-batches that it holds beside, of each chunk."""

    forward: bool
    chunk: int
    others: tuple[int, ...]


def check(schedule: str, stages: int, micro_batches: int, chunks: int) -> None:
    """Raise BadInput where micro-batches do not go round evenly, or a schedule has another number of chunks."""
    if (chunks > 1) != (schedule == "interleaved"):
        raise BadInput(f"pipeline_schedule {schedule!r} with virtual_pipeline {chunks}: several chunks are interleaved, and only they")
    if chunks > 1 and stages == 1:
        raise BadInput(f"virtual_pipeline {chunks}: there is no pipeline to interleave; add pipeline_parallel")
    if chunks > 1 and micro_batches % stages:
        near = max(round(micro_batches / stages), 1) * stages
        raise BadInput(
            f"gradient_accumulation {micro_batches}: interleaved, it must be a multiple of pipeline_parallel {stages}, as {near}"
        )


def warm_up(schedule: str, stage: int, stages: int, micro_batches: int, chunks: int = 1) -> int:
    """Forward passes of a stage before its first pair of forward and backward.

    >>> [warm_up("1f1b", stage, 4, 16) for stage in range(4)], warm_up("interleaved", 0, 4, 16, 2)
    ([3, 2, 1, 0], 10)
    """
    left = stages - stage - 1
    if schedule == "gpipe":
        return micro_batches
    return min(2 * left + (chunks - 1) * stages if chunks > 1 else left, micro_batches * chunks)


def passes(schedule: str, stage: int, stages: int, micro_batches: int, chunks: int = 1) -> Iterator[Pass]:
    """A stage's passes in their order, until no more than before can be held.

    Each chunk takes `stages` micro-batches before the next does, forward in order and backward in reverse.
    """
    if schedule != "gpipe":
        micro_batches = min(micro_batches, 4 * stages)  # after them the same comes again
    total, first = micro_batches * chunks, warm_up(schedule, stage, stages, micro_batches, chunks)
    held = [0] * chunks
    for number in range(total + 1):
        if number > first or number == total:
            back = chunks - 1 - (number - min(first + 1, total)) // stages % chunks
            held[back] -= 1
            yield Pass(forward=False, chunk=back, others=tuple(held))
        if number < total:
            chunk = number // stages % chunks
            yield Pass(forward=True, chunk=chunk, others=tuple(held))
            held[chunk] += 1


def delayed(schedule: str, stage: int, micro_batches: int) -> int:
    """Backward passes of a stage whose gradients of weights are still to be made: zero-bubble's fill the gaps at its end.

    So each stage holds about as much as the first (Qi et al., section 3).
    """
    return min(stage, micro_batches - 1) if schedule == "zero-bubble" else 0
