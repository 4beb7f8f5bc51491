"""What the pages of cards and models show: rows of the catalogue, and answers for each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..catalog.gpus import Gpu, all_gpus, find_gpu, search_gpus
from ..catalog.models import ModelEntry, find_model, search_models
from ..errors import VramplanError
from ..estimate import estimate
from ..inspect import Inspection, inspect
from ..units import count, gib
from .address import address
from .presets import PRESETS

SORTS: Mapping[str, Callable[[Gpu], Any]] = {
    "name": lambda gpu: gpu.name.lower(),
    "usable": lambda gpu: -gpu.usable,
    "bandwidth": lambda gpu: -gpu.bandwidth,
    "compute": lambda gpu: -_rate(gpu),
    "price": lambda gpu: _bought(gpu) or float("inf"),
    "year": lambda gpu: -gpu.year,
}
SHOWN_MODELS, PER_PAGE = 16, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One cell of a table of answers: its state, what it says, and the address that says more."""

    state: str
    text: str
    title: str
    href: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A line of such a table: a name with its address, and a verdict for each task."""

    name: str
    href: str
    cells: tuple[Verdict, ...]


def cards(query: str, sort: str) -> list[dict[str, str]]:
    """The GPUs that a query finds, as rows, sorted."""
    return [
        {
            "id": gpu.id,
            "name": gpu.name,
            "usable": gib(gpu.usable, 1),
            "bandwidth": f"{gpu.bandwidth / 1e9:,.0f} GB/s" if gpu.bandwidth else "-",
            "compute": f"{_rate(gpu) / 1e12:,.0f}" if _rate(gpu) else "-",
            "price": f"${_bought(gpu):,.0f}" if _bought(gpu) else "-",
            "year": str(gpu.year or "-"),
            "kind": f"{gpu.vendor} {gpu.kind}",
        }
        for gpu in sorted(search_gpus(query), key=SORTS.get(sort, SORTS["name"]))
    ]


@lru_cache(maxsize=256)
def what_runs(id: str) -> tuple[Gpu, tuple[Row, ...]]:
    """A card, and the best-known models of the catalogue on it, for each task."""
    gpu = find_gpu(id)
    return gpu, tuple(_row(model.id, f"/models/{model.id}", model=model.id, gpu=gpu.id) for model in search_models("", SHOWN_MODELS))


def models(query: str, page: int) -> tuple[list[ModelEntry], bool]:
    """A page of the models that a query finds, and whether there are more."""
    found = search_models(query, PER_PAGE * page + 1)[PER_PAGE * (page - 1) :]
    return found[:PER_PAGE], len(found) > PER_PAGE


@lru_cache(maxsize=256)
def needs(id: str) -> tuple[ModelEntry, Inspection | None, tuple[tuple[str, str, str], ...]]:
    """A model of the catalogue, what it is made of, and what each task takes of it without a GPU: name, peak, address."""
    entry = find_model(id)
    rows = []
    for preset in PRESETS:
        asked = {"model": entry.id, **preset.sets}
        try:
            text = gib(estimate(asked.pop("model"), **asked).peak[1])
        except VramplanError as error:
            text = str(error)
        rows.append((preset.name, text, address({"model": entry.id, **preset.sets})))
    try:
        inside = inspect(entry.id)
    except VramplanError:
        inside = None
    return entry, inside, tuple(rows)


@lru_cache(maxsize=256)
def on_every_card(id: str, preset: str) -> tuple[tuple[Gpu, Verdict], ...]:
    """A model on every card of the catalogue, for one task, the smallest card first."""
    sets = next((one.sets for one in PRESETS if one.id == preset), PRESETS[0].sets)
    gpus = sorted(all_gpus(), key=lambda gpu: (gpu.usable, gpu.name))
    return tuple((gpu, _verdict({"model": find_model(id).id, "gpu": gpu.id, **sets})) for gpu in gpus)


def made_of(inside: Inspection) -> tuple[tuple[str, str], ...]:
    """A model's figures by name."""
    tape, length = inside.tape, inside.model.context_length
    return (
        ("parameters", f"{tape.parameters:,} ({count(tape.parameters)})"),
        ("active per token", count(tape.active_parameters)),
        ("context", f"{length:,} tokens" if length else "not stated"),
        ("layers", "; ".join(f"{n} of {parts}" for n, parts in inside.layers)),
        *((f"cache of {tokens:,} tokens, 16 bits", gib(inside.cache_nbytes(tokens))) for tokens in (8192, 131072) if inside.caches),
    )


def _row(name: str, href: str, **keys: str) -> Row:
    return Row(name=name, href=href, cells=tuple(_verdict({**keys, **preset.sets}) for preset in PRESETS))


def _verdict(keys: Mapping[str, str]) -> Verdict:
    """Whether a scenario fits, in a word and the peak; `fits` by the ledger alone, which is what a table of hundreds has time for."""
    href = address(keys)
    try:
        answer = estimate(keys["model"], **{name: value for name, value in keys.items() if name != "model"})
    except VramplanError as error:
        return Verdict(state="open", text="not told", title=str(error), href=href)
    fits = answer.headroom is not None and answer.headroom >= 0
    return Verdict(state="fits" if fits else "short", text=gib(answer.peak[1], 1), title="", href=href)


def _rate(gpu: Gpu) -> float:
    return gpu.rates.get("bf16") or gpu.rates.get("fp16") or 0.0


def _bought(gpu: Gpu) -> float:
    return next((price.usd for price in gpu.prices if price.per == "card"), 0.0)
