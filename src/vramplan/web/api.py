"""The HTTP API's answers as JSON-ready data: from a scenario, a question to the catalogue, or the header of a file. No sockets here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from ..catalog.gpus import search_gpus
from ..catalog.models import search_models
from ..errors import BadInput
from ..estimate import estimate
from ..planner.buy import ORDERS
from ..readers import Reader, choice, integer
from ..scenario import scenario
from ..sources import model_of, sent
from ..sources.choice import QUANT
from ..sources.stored import Found, StoredTensor
from ..units import gib
from .address import LONGEST, address
from .bounds import modest

MOST_MODELS, MOST_CHARACTERS = 100, 200

Asked = Mapping[str, Any]


def _estimate(asked: Asked) -> dict[str, Any]:
    return estimate(scenario(asked)).to_dict()


def _plan(asked: Asked) -> dict[str, Any]:
    from ..planner.search import plan

    wish, more = split("plan", asked)
    return plan(scenario(wish), **more).to_dict()


def _fix(asked: Asked) -> dict[str, Any]:
    from ..planner.fix import fix

    return fix(scenario(asked)).to_dict()


def _max(asked: Asked) -> dict[str, Any]:
    from ..planner.largest import axes, frontier, maximum

    one = scenario(asked)
    table = [{"length": length, "batch": batch} for length, batch in frontier(one)]
    return {"largest": [maximum(one, of).to_dict() for of in axes(one)], "frontier": table}


def _buy(asked: Asked) -> dict[str, Any]:
    from ..planner.buy import buy

    wish, more = split("buy", asked)
    return {"offers": [one.to_dict() for one in buy(scenario(wish), **more)]}


ANSWERS: dict[str, Callable[[Asked], dict[str, Any]]] = {"estimate": _estimate, "plan": _plan, "fix": _fix, "max": _max, "buy": _buy}
"""What can be asked about a scenario, by the last part of the address."""

MORE: Mapping[str, Mapping[str, Reader]] = {
    "plan": {"global_batch": integer()},
    "buy": {"by": choice(*ORDERS)},
}
"""What can be asked beside a scenario's keys, and how it is read."""


def split(name: str, asked: Asked) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scenario's keys, and what else was asked, read."""
    own = MORE.get(name, {})
    wish = {key: value for key, value in asked.items() if key not in own}
    return wish, {key: read(key, asked[key]) for key, read in own.items() if asked.get(key) is not None}


def models(asked: Asked) -> dict[str, Any]:
    """Models of the catalogue that `q` may mean, the likeliest first, at most `limit` of them."""
    known(asked, "q", "limit")
    limit = str(asked.get("limit", 20))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= MOST_MODELS):
        raise BadInput(f"limit {limit[:20]!r}: must be an integer from 1 to {MOST_MODELS}")
    found = search_models(str(asked.get("q", "")), int(limit))
    return {"models": [{"id": m.id, "context_length": m.context_length, "licence": m.licence, "downloads": m.downloads} for m in found]}


def gpus(asked: Asked) -> dict[str, Any]:
    """GPUs of the catalogue whose names hold every word of `q`, with all figures and their sources."""
    known(asked, "q")
    return {"gpus": [asdict(gpu) for gpu in search_gpus(str(asked.get("q", "")))]}


def known(asked: Asked, *names: str) -> None:
    """BadInput for anything beside `names`."""
    for name, value in asked.items():
        if name not in names:
            raise BadInput(f"unknown parameter {name[:60]!r}; allowed are {', '.join(names)}")
        if len(str(value)) > MOST_CHARACTERS:
            raise BadInput(f"{name}: at most {MOST_CHARACTERS} characters")


def inspect(data: bytes, name: str) -> dict[str, Any]:
    """What a header or config.json is of, and the address of the page that estimates it; None and why where it has none.

    The address carries the config; of a GGUF file also the quantisation that its name tells, not each tensor's own type.
    """
    name = name.rpartition("/")[2].rpartition("\\")[2][:200] or "the file that was sent"
    found = sent(data, name)
    stored = _stored(found.header.tensors) if found.header else None
    answer: dict[str, Any] = {"name": name, "stored": stored, "address": None}
    if found.config is None and found.header and not any(str(key).startswith("general.") for key in found.header.metadata):
        total = gib(sum(stored.values())) if stored else "nothing"
        return answer | {"detail": f"{name} holds {total} of weights, but says nothing of layers and heads: drop its config.json"}
    model = model_of(found)
    keys: dict[str, Any] = {"model": _lean(model.config)}
    if found.config is None:
        keys |= {"engine": "llama.cpp", "weights": _quantisation(found, name)}
    link = address(keys)
    if len(link) > LONGEST:
        return answer | {"detail": f"the config has {len(link):,} characters in an address, which takes {LONGEST:,}: send it to the API"}
    answer["config"] = model.config
    return answer | {"address": link, "detail": f"{name}: {model.config['model_type']}"}


def _lean(config: Mapping[str, object]) -> dict[str, object]:
    """A config without what says nothing."""
    return {key: value for key, value in config.items() if value is not None and not key.startswith("_")}


def _stored(tensors: tuple[StoredTensor, ...]) -> dict[str, int]:
    """Bytes by stored type."""
    types: dict[str, int] = {}
    for tensor in tensors:
        types[tensor.dtype] = types.get(tensor.dtype, 0) + tensor.nbytes
    return types


def _quantisation(found: Found, name: str) -> str | None:
    """The mixture that a GGUF file's name tells, else the type of most of its bytes; None where that is no mixture's name."""
    from ..formats import scheme_names

    if named := QUANT.search(name):
        return named[0].upper().removeprefix("UD-")
    types = _stored(found.header.tensors) if found.header else {}
    most = max(types, key=lambda kind: types[kind], default="")
    return most if most in scheme_names() else None


def body(data: bytes) -> dict[str, Any]:
    """The scenario that a request's body holds. Raises BadFile, as every reader of strangers' files does."""
    from ..sources.local import parse_config

    asked = parse_config(data, "the request's body")
    modest(asked)
    return asked
