"""Pages: from an address to HTML. Pure functions, so that a server and a static copy of the site say the same; no sockets here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..catalog.models import search_models
from ..errors import NotFound, VramplanError
from ..estimate import estimate
from . import catalog, controls, documents, panels
from .address import address, given, pairs, several, text
from .answer import filled, shown
from .presets import PRESETS, applied, current
from .problems import status

if TYPE_CHECKING:
    from jinja2 import Environment

STATIC = Path(__file__).resolve().parent / "static"
EXAMPLES = 8
OWN = ("show", "preset", "moving")
"""Names in an address that are the page's own, beside the scenario's: what is shown, a task to go to, and that a control is being moved."""
MOST_COMPARED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What an address gives: HTML with its status, or another address to go to."""

    html: str = ""
    status: int = 200
    location: str | None = None


def page(path: str, query: str = "", *, hub: bool = False) -> Page:
    """The page at `path` for a query string; `hub` says whether ids of the Hub are looked up. Errors are pages too."""
    try:
        for pattern, make in ROUTES:
            if found := re.fullmatch(pattern, path):
                return make(query, hub, **found.groupdict())
        raise NotFound(f"no page {path[:80]!r} here")
    except VramplanError as error:
        return Page(html=_render("error.html", title="Not answered", message=str(error)), status=status(error))


def _home(query: str, hub: bool) -> Page:
    found = pairs(query)
    values, rest = given(found)
    if "preset" in rest:
        return Page(status=303, location=address(applied(values, rest["preset"])))
    if "=&" in query or query.endswith("="):
        return Page(status=303, location=address(values))
    code, said = _answer(values, rest)
    took = said.pop("took")
    html = _render(
        "home.html", title=_title(values), said=said, hub=hub, presets=PRESETS, current=current(values), values=values,
        first=controls.first(values, took), folded=controls.folded(values, took), suggestions=controls.suggestions(),
        model=text(values.get("model", "")), **said,
    )  # fmt: skip
    return Page(html=html, status=code)


def _fragment(query: str, hub: bool) -> Page:
    """The answer alone, for the script."""
    values, rest = given(pairs(query))
    code, said = _answer(values, rest)
    return Page(html=_render("answer.html", **said), status=code)


def _answer(values: Mapping[str, Any], rest: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    """A status, and what the answer's template shows; `took` has the scenario's defaults.

    While a control is moving torch's allocator is not simulated, which takes ten times as long as all the rest; when it rests it is.
    """
    said: dict[str, Any] = {
        "unread": [name for name in rest if name not in OWN],
        "took": {},
        "here": address(values),
        "show_more": address(values, show="more"),
        "show_cards": address(values, show="cards"),
        "search": address(values, "/more"),
        "cards": address(values, "/offers"),
    }
    if not values.get("model"):
        return 200, said | {"examples": [(one.id, address(values, model=one.id)) for one in search_models("", EXAMPLES)]}
    try:
        answer = estimate(values["model"], **{name: value for name, value in values.items() if name != "model"})
        if "moving" in rest:
            answer = replace(answer, events=None)
        said |= {"answer": shown(answer, dict(values)), "pace": panels.pace(answer), "searched": answer.room is not None}
        said["more"] = panels.more(answer, dict(values)) if rest.get("show") == "more" else None
        said["offers"] = panels.offers(dict(values)) if rest.get("show") == "cards" else None
    except VramplanError as error:
        return status(error), said | {"message": str(error), "examples": _near(values, error)}
    return 200, said | {"took": filled(answer), "compared": f"/compare?{several([address(values)])}"}


def _more(query: str, hub: bool) -> Page:
    """What searches find, alone, for the script."""
    values, _ = given(pairs(query))
    answer = estimate(values.get("model", ""), **{name: value for name, value in values.items() if name != "model"})
    return Page(html=_render("more.html", more=panels.more(answer, values)))


def _offers(query: str, hub: bool) -> Page:
    """The cards that fit, alone, for the script."""
    values, _ = given(pairs(query))
    return Page(html=_render("offers.html", offers=panels.offers(values)))


def _near(values: Mapping[str, Any], error: VramplanError) -> list[tuple[str, str]]:
    """Models that may have been meant, with addresses."""
    name = values["model"]
    if not isinstance(error, NotFound) or not isinstance(name, str) or not str(error).startswith("model"):
        return []
    words = re.sub(r"[^\w.]+", " ", name.rpartition("/")[2])
    return [(one.id, address(values, model=one.id)) for one in search_models(words, EXAMPLES)]


def _title(values: Mapping[str, Any]) -> str:
    model = values.get("model")
    if not isinstance(model, str):
        return "How much GPU memory does it take?" if model is None else "A config of your own"
    named = f" on {values['gpu']}" if values.get("gpu") else ""
    name = next((one.name for one in PRESETS if one.id == current(values)), str(current(values)))
    return f"{model}: {name}{named}"


def _compare(query: str, hub: bool) -> Page:
    asked = [one.rpartition("?")[2] for name, one in pairs(query) if name == "s"][:MOST_COMPARED]
    columns = []
    for number, one in enumerate(asked):
        others = asked[:number] + asked[number + 1 :]
        column: dict[str, Any] = {"href": f"/?{one}", "without": f"/compare?{several(others)}"}
        try:
            values, _ = given(pairs(one))
            answer = estimate(values.pop("model", ""), **values)
            column |= {"answer": shown(answer, {"model": answer.model.id, **values}), "model": answer.model.id, "chosen": _keys(values)}
        except VramplanError as error:
            column["message"] = str(error)
        columns.append(column)
    parts = list(dict.fromkeys(part.name for column in columns if "answer" in column for part in column["answer"].parts))
    more = len(asked) < MOST_COMPARED
    return Page(html=_render("compare.html", title="Compare", columns=columns, parts=parts, asked=asked, more=more))


def _keys(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(controls.label(name), text(value)) for name, value in values.items()]


def _cards(query: str, hub: bool) -> Page:
    asked = dict(pairs(query))
    rows = catalog.cards(asked.get("q", ""), asked.get("sort", ""))
    sort = asked.get("sort", "name")
    return Page(html=_render("cards.html", title="Cards", rows=rows, q=asked.get("q", ""), sort=sort, sorts=list(catalog.SORTS)))


def _card(query: str, hub: bool, id: str) -> Page:
    gpu, rows = catalog.what_runs(id)
    return Page(html=_render("card.html", title=gpu.name, gpu=gpu, rows=rows, presets=PRESETS, start=address({"gpu": gpu.id})))


def _models(query: str, hub: bool) -> Page:
    asked = dict(pairs(query))
    number = int(asked["page"]) if asked.get("page", "").isdecimal() and len(asked["page"]) < 4 else 1
    rows, more = catalog.models(asked.get("q", ""), max(number, 1))
    return Page(html=_render("models.html", title="Models", rows=rows, more=more, q=asked.get("q", ""), number=max(number, 1)))


def _model(query: str, hub: bool, id: str) -> Page:
    task = dict(pairs(query)).get("task", PRESETS[0].id)
    entry, inside, rows = catalog.needs(id)
    every = catalog.on_every_card(id, task)
    facts = catalog.made_of(inside) if inside else ()
    html = _render("model.html", title=entry.id, entry=entry, facts=facts, rows=rows, every=every, task=task, presets=PRESETS)
    return Page(html=html)


def _document(query: str, hub: bool, name: str = "") -> Page:
    found = documents.document(name or documents.OPENING)
    below = documents.home(name or documents.OPENING)
    return Page(html=_render("document.html", title=found.title, document=found, titles=documents.titles(), below=below))


def _accuracy(query: str, hub: bool) -> Page:
    return _document(query, hub, "accuracy")


def _claims(query: str, hub: bool) -> Page:
    return _document(query, hub, "claims")


ROUTES = (
    (r"/", _home),
    (r"/answer", _fragment),
    (r"/more", _more),
    (r"/offers", _offers),
    (r"/compare", _compare),
    (r"/cards", _cards),
    (r"/cards/(?P<id>[^/]{1,80})", _card),
    (r"/models", _models),
    (r"/models/(?P<id>.{1,200})", _model),
    (r"/how", _document),
    (r"/how/(?P<name>[a-z-]{1,60})", _document),
    (r"/accuracy", _accuracy),
    (r"/claims", _claims),
)
MENU = (
    ("/", "Estimate"),
    ("/compare", "Compare"),
    ("/cards", "Cards"),
    ("/models", "Models"),
    ("/accuracy", "Accuracy"),
    ("/claims", "Claims"),
    ("/how", "How it works"),
)


@cache
def asset(name: str) -> str:
    """The address of a static file, with a mark of what is in it, so that it may be kept for a year."""
    return f"/static/{name}?v={hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:10]}"


@cache
def _environment() -> Environment:
    from importlib.metadata import version

    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).resolve().parent / "templates")
    made = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, auto_reload=False)
    made.globals.update(asset=asset, menu=MENU, version=version("vramplan"))
    return made


def _render(template: str, **values: Any) -> str:
    return _environment().get_template(template).render(**values)
