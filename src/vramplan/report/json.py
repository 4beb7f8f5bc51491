"""An Estimate as the machine interface's JSON. Bytes are integers; keys may be added, never renamed."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..estimate import Estimate


def to_dict(answer: Estimate) -> dict[str, Any]:
    """JSON-ready data: the scenario with defaults filled in, assumptions, quantities, the verdict, and every item of every GPU."""
    moment, _ = answer.peak
    given = {f.name: getattr(answer.scenario, f.name) for f in fields(answer.scenario)}
    gpu = answer.gpu
    return {
        "scenario": {name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value is not None},
        "model": {"id": answer.model.id, "origin": answer.model.origin},
        "assumptions": list(answer.assumptions),
        "remarks": list(answer.remarks),
        "quantities": dict(answer.quantities),
        "fits": answer.fits,
        "headroom": answer.headroom,
        "likelihood": None,
        "gpus": [
            {
                "rank": 0,
                "name": gpu.name if gpu else None,
                "capacity": gpu.capacity if gpu else None,
                "usable": answer.room,
                "peak_moment": moment.value,
                "peak": answer.peak[1],
                "items": [
                    {
                        "path": list(item.path),
                        "nbytes": item.nbytes,
                        "alive": [m.value for m in type(moment) if m in item.alive],
                        "why": item.why,
                        "source": item.source,
                    }
                    for item in answer.ledger.items
                ],
            }
        ],
    }
