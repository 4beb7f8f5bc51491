"""Slots for LoRA adapters that a server keeps beside the model: A [rank, in] and B [out, rank] for each linear layer and expert.

A rank has the slice of A or B that goes with its slice of the layer. What it does not know: heads and embeddings, which servers take apart.
"""

from __future__ import annotations

from ..ledger import Item
from ..tape import Tape
from .job import Job
from .lines import SERVING, counted


def adapter_slots(job: Job, tape: Tape, count: int, rank: int, source: str) -> Item:
    """`count` slots for adapters of `rank`, for a rank that has the weights of `tape`."""
    mine = [w for w in tape.weights if w.kind in ("linear", "experts") and w.tower is None and len(w.shape) == 2]
    width = sum(sum(int(size) for size in w.shape) * w.copies * w.repeats for w in mine)
    why = f"{counted(count, 'slot')} × rank {rank} × {width:,} rows and columns of every linear layer × {job.itemsize} B"
    return Item(path=("weights", "adapters"), nbytes=count * rank * width * job.itemsize, alive=SERVING, why=why, source=source)
