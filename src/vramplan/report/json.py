"""An Estimate as the machine interface's JSON. Bytes are integers; keys may be added, never renamed."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..errors import Unknown
from ..ledger import Item, Moment
from ..speed import told

if TYPE_CHECKING:
    from ..estimate import Estimate, Share


def to_dict(answer: Estimate) -> dict[str, Any]:
    """JSON-ready data: the scenario with defaults filled in, assumptions, quantities, the verdict, and every item of every GPU."""
    given = {f.name: getattr(answer.scenario, f.name) for f in fields(answer.scenario)}
    return {
        "scenario": {name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value is not None},
        "model": {"id": answer.model.id, "origin": answer.model.origin},
        "assumptions": list(answer.assumptions),
        "remarks": list(answer.remarks),
        "quantities": dict(answer.quantities),
        "fits": answer.fits,
        "headroom": answer.headroom,
        "likelihood": answer.likelihood,
        **({"speed": _speed(answer)} if answer.gpu else {}),
        "gpus": [_share(share) for share in answer.shares],
        **({"host": [_item(item) for item in answer.host.items]} if answer.host.items else {}),
    }


def _speed(answer: Estimate) -> dict[str, Any]:
    """Figures, their bound and the efficiency that they are at; or why they are not known."""
    try:
        found = told(answer)
    except Unknown as error:
        return {"unknown": str(error)}
    fitted = {"efficiency": found.efficiency, "spread": list(found.spread), "class": found.fitted_on, "rows": found.rows}
    return {**found.numbers, "sequences": found.sequences, "bound": found.bound, **fitted, "why": found.why}


def _share(share: Share) -> dict[str, Any]:
    moment, peak = share.ledger.peak()
    return {
        "rank": share.rank,
        "count": share.count,
        "name": share.gpu.name if share.gpu else None,
        "capacity": share.gpu.capacity if share.gpu else None,
        "usable": share.room,
        "peak_moment": moment.value,
        "peak": peak,
        "items": [_item(item) for item in share.ledger.items],
    }


def _item(item: Item) -> dict[str, Any]:
    alive = [moment.value for moment in Moment if moment in item.alive]
    return {"path": list(item.path), "nbytes": item.nbytes, "alive": alive, "why": item.why, "source": item.source}
