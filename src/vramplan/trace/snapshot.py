"""A trace as a PyTorch memory snapshot, the pickle that https://pytorch.org/memory_viz opens; no torch needed to write it.

The format is that of `torch.cuda.memory._snapshot()` (torch/cuda/memory.py and torch/cuda/_memory_viz.py, 2.13): segments with their blocks
as they stand in the end, and a list of actions in order. Addresses are those of the simulated allocator; the "stack" of a block is its
operator, its module, and the phase of the step that made it.
"""

from __future__ import annotations

import pickle
from typing import Any

from ..allocator import ALLOC, FREE, Allocator
from .result import Block, Trace

Json = dict[str, Any]


def snapshot(trace: Trace) -> Json:
    """The snapshot of a trace: `{"segments": […], "device_traces": [[…]]}`."""
    allocator = Allocator()
    frames: dict[int, list[Json]] = {}
    shared: dict[tuple[str, str, int], list[Json]] = {}
    actions: list[Json] = []

    def act(action: str, address: int, size: int, number: int) -> None:
        entry = {"action": action, "addr": address, "size": size, "stream": 0, "time_us": len(actions), "frames": frames[number]}
        actions.append(entry)

    for kind, number, nbytes in trace.events:
        if kind == ALLOC:
            block = trace.blocks[number]
            key = block.op, block.module, block.phase
            frames[number] = shared[key] = shared.get(key) or _frames(trace, block)
            before = len(allocator.segments)
            made = allocator.malloc(number, nbytes)
            if len(allocator.segments) > before:
                address, size = next(reversed(allocator.segments.items()))
                act("segment_alloc", address, size, number)
            act("alloc", made.address, nbytes, number)
        elif kind == FREE:
            freed = allocator.free(number)
            for action in ("free_requested", "free_completed"):
                act(action, freed.address, trace.blocks[number].nbytes, number)
    return {"segments": _segments(trace, allocator, frames), "device_traces": [actions], "allocator_settings": {}}


def write(trace: Trace, path: str) -> None:
    """Write the snapshot of a trace to the file `path`."""
    with open(path, "wb") as file:
        pickle.dump(snapshot(trace), file)


def _frames(trace: Trace, block: Block) -> list[Json]:
    step, moment = trace.phases[block.phase] if block.phase >= 0 else (0, "load")
    return [
        {"name": block.op, "filename": block.category or "tensor", "line": 0},
        {"name": block.module or "(no module)", "filename": "module", "line": 0},
        {"name": moment, "filename": f"step {step + 1}", "line": 0},
    ]


def _segments(trace: Trace, allocator: Allocator, frames: dict[int, list[Json]]) -> list[Json]:
    found = {b.address: _block(b.address, b.size, trace.blocks[n].nbytes, frames[n]) for n, b in allocator.blocks.items()}
    found |= {b.address: _block(b.address, b.size) for pool in allocator.pools.values() for _, _, b in pool}
    addresses = sorted(found)
    segments = []
    for start, size in sorted(allocator.segments.items()):
        blocks = [found[a] for a in addresses if start <= a < start + size]
        taken = [b for b in blocks if b["state"] == "active_allocated"]
        segments.append(
            {
                "device": 0,
                "address": start,
                "total_size": size,
                "allocated_size": sum(b["size"] for b in taken),
                "active_size": sum(b["size"] for b in taken),
                "requested_size": sum(b["requested_size"] for b in taken),
                "stream": 0,
                "segment_type": "small" if size == 2 << 20 else "large",
                "segment_pool_id": (0, 0),
                "is_expandable": False,
                "frames": blocks[0]["frames"],
                "blocks": blocks,
            }
        )
    return segments


def _block(address: int, size: int, requested: int = 0, frames: list[Json] | None = None) -> Json:
    state = "inactive" if frames is None else "active_allocated"
    return {"address": address, "size": size, "requested_size": requested, "state": state, "frames": frames or []}
