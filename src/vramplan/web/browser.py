"""The answers of an exported copy of the site, which Python in the visitor's browser makes: an address comes in, a reply goes out.

Says what `server.py` says to the same address, without sockets. A copy may stand below a path of its host: only replies know of that.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from ..errors import NotFound, VramplanError
from ..sources import only
from . import api, openapi, pages
from .address import given, pairs
from .problems import problem, status

API = "/api/v1/"
HTML, JSON, PROBLEM = "text/html", "application/json", "application/problem+json"


class Reply(NamedTuple):
    """A status, what `text` is, and the text: of a redirect the address to go to."""

    status: int
    kind: str
    text: str


def reply(path: str, query: str = "", body: bytes | memoryview | None = None, base: str = "/") -> Reply:
    """The reply to an address, or to `body` posted there; addresses in it are of a copy that stands at `base`. Errors are replies too."""
    with only():
        if path.startswith(API):
            return _api(path.removeprefix(API), query, None if body is None else bytes(body), base)
        found = pages.page(path, query)
    if found.location is not None:
        return Reply(found.status, HTML, base + found.location[1:])
    return Reply(found.status, HTML, rebased(found.html, base))


def rebased(html: str, base: str) -> str:
    """A page whose links, forms and files are of a copy at `base`.

    >>> rebased('<a href="/cards">', "/vramplan/"), rebased('<p data-src="/more">"/cards"</p>', "/vramplan/")
    ('<a href="/vramplan/cards">', '<p data-src="/more">"/cards"</p>')
    """
    return re.sub(r'(?<=\s)(href|src|action)="/', rf'\1="{base}', html)


def _api(name: str, query: str, body: bytes | None, base: str) -> Reply:
    try:
        return Reply(200, JSON, json.dumps(_answer(name, query, body, base), ensure_ascii=False, indent=1))
    except VramplanError as error:
        return Reply(status(error), PROBLEM, json.dumps(problem(status(error), str(error)), ensure_ascii=False))


def _answer(name: str, query: str, body: bytes | None, base: str) -> dict[str, Any]:
    asked = dict(pairs(query))
    if name in api.ANSWERS:
        values, rest = given(pairs(query))
        return api.ANSWERS[name](values | rest if body is None else api.body(body))
    if name == "inspect" and body is not None:
        found = api.inspect(body, asked.get("name", ""))
        return found | {"address": found["address"] and base + found["address"][1:]}
    if name == "models":
        return api.models(asked)
    if name == "gpus":
        return api.gpus(asked)
    if name == "openapi.json":
        return dict(openapi.document())
    raise NotFound(f"nothing at {API}{name[:80]}")
