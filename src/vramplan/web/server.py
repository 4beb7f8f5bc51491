"""The server: how requests come in and answers go out. Bounded bodies, time and numbers; no cookies, no third party, nothing kept.

Stateless: any number of copies may stand behind a balancer; /healthz says that one is alive. What a request says reaches no file, and the
Hub only where the operator turned that on.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ..errors import BadInput, VramplanError
from ..sources import only
from . import api, openapi, pages
from .address import given, pairs
from .problems import Busy, TooLarge, problem, status
from .work import Work

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]

MAX_BODY = 2_000_000
"""Bytes of a request's body at most: a header without its vocabulary has about 100,000, a config 10,000."""
SLOWEST = 10
"""Seconds that a body may take to come."""
KEPT = "public, max-age=300"
"""Answers change with the version only; five minutes after an upgrade all copies say the same."""
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Headers:
    """Puts the headers that every answer has on it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((name.encode(), value.encode()) for name, value in HEADERS.items())]
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


SEARCHES = ("plan", "fix", "max", "buy", "more", "offers")
"""The last parts of the addresses whose answers are searches: they have threads of their own, so that no answer waits for them."""


def application(*, hub: bool = False, work: Work | None = None) -> Starlette:
    """The whole site as an ASGI application; `hub` lets ids of the Hugging Face Hub be looked up."""
    places = ("hub",) if hub else ()
    quick, searches = work or Work(), Work(threads=1, waiting=32, seconds=30)

    async def made(request: Request, make: Callable[[], T]) -> T:
        """What `make` gives, in a thread of the bounded few that reach no file."""

        def confined() -> T:
            with only(*places):
                return make()

        long = request.url.path.rpartition("/")[2] in SEARCHES or "show=" in request.url.query
        return await (searches if long else quick).run(confined)

    @lru_cache(maxsize=2048)
    def answered(name: str, asked: str) -> bytes:
        return _json(api.ANSWERS[name](json.loads(asked)))

    def about(name: str) -> Handler:
        async def answer(request: Request) -> Response:
            asked = api.body(await _body(request)) if request.method == "POST" else _asked(request)
            return _answer(request, await made(request, lambda: answered(name, json.dumps(asked))))

        return answer

    def catalogue(find: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Handler:
        async def answer(request: Request) -> Response:
            return _answer(request, await made(request, lambda: _json(find(dict(pairs(request.url.query, empty=True))))))

        return answer

    async def inspect(request: Request) -> Response:
        data, name = await _body(request), request.query_params.get("name", "")
        return _answer(request, await made(request, lambda: _json(api.inspect(data, name))))

    async def page(request: Request) -> Response:
        found = await made(request, lambda: pages.page(request.url.path, request.url.query, hub=hub))
        if found.location is not None:
            return RedirectResponse(found.location, found.status)
        return _answer(request, found.html.encode(), "text/html; charset=utf-8", found.status)

    routes = [
        Route("/healthz", _healthy),
        Route("/robots.txt", _robots),
        Route("/api/v1/openapi.json", _document),
        Route("/api/v1/models", catalogue(api.models)),
        Route("/api/v1/gpus", catalogue(api.gpus)),
        Route("/api/v1/inspect", inspect, methods=["POST"]),
        Route("/api/v1/inspect", _only_posted),
        *(Route(f"/api/v1/{name}", about(name), methods=["GET", "POST"]) for name in api.ANSWERS),
        Route("/api/{rest:path}", _nothing),
        Mount("/static", _Static(directory=pages.STATIC)),
        Route("/{rest:path}", page),
    ]
    handlers: dict[Any, Any] = {VramplanError: _refused, HTTPException: _wrong, Exception: _broken}
    return Starlette(routes=routes, exception_handlers=handlers, middleware=[Middleware(Headers), Middleware(GZipMiddleware, 1000, 5)])


class _Static(StaticFiles):
    """Files that are asked for by what is in them, and so may be kept for a year."""

    def file_response(self, *given: Any, **named: Any) -> Response:
        response = super().file_response(*given, **named)
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response


async def _body(request: Request) -> bytes:
    """A request's body. Raises TooLarge as soon as it is, and Busy for one that does not come."""
    length, data = request.headers.get("content-length", "0"), bytearray()
    if length.isdecimal() and int(length) > MAX_BODY:
        raise TooLarge(f"a body of {int(length):,} bytes: at most {MAX_BODY:,} are read")
    try:
        async with asyncio.timeout(SLOWEST):
            async for piece in request.stream():
                data += piece
                if len(data) > MAX_BODY:
                    raise TooLarge(f"a body of more than {MAX_BODY:,} bytes")
    except TimeoutError:
        raise Busy(f"the request's body did not come within {SLOWEST} seconds") from None
    except ClientDisconnect:
        raise BadInput("the request's body ends too early") from None
    return bytes(data)


def _asked(request: Request) -> dict[str, Any]:
    """The scenario in a query; what is no key of it is left for the scenario to refuse."""
    values, rest = given(pairs(request.url.query, empty=True))
    return values | rest


def _json(data: object) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def _answer(request: Request, data: bytes, kind: str = "application/json", code: int = 200) -> Response:
    """An answer with its ETag; nothing but the ETag where the asker has it already."""
    tag = f'W/"{hashlib.sha256(data).hexdigest()[:24]}"'
    headers = {"etag": tag, "cache-control": KEPT if code == 200 else "no-store"}
    if code == 200 and tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(data, code, headers, kind)


async def _healthy(request: Request) -> Response:
    return PlainTextResponse("ok\n", headers={"cache-control": "no-store"})


async def _robots(request: Request) -> Response:
    """Search engines may read every page; the API is for programs."""
    return PlainTextResponse("User-agent: *\nDisallow: /api/\nDisallow: /answer\n")


async def _document(request: Request) -> Response:
    return _answer(request, _json(openapi.document()))


async def _only_posted(request: Request) -> Response:
    raise HTTPException(405, "send the header of a file with POST", {"allow": "POST"})


async def _nothing(request: Request) -> Response:
    raise HTTPException(404, f"nothing at {request.url.path[:80]}; the API is described at /api/v1/openapi.json")


async def _refused(request: Request, error: VramplanError) -> Response:
    """An error of ours: a page has made its own of it, the API says problem+json."""
    return _problem(status(error), str(error))


async def _wrong(request: Request, error: HTTPException) -> Response:
    return _problem(error.status_code, str(error.detail), error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    """A mistake of ours; what it was is in the server's log."""
    return _problem(500, "a mistake of this server's, which its log describes")


def _problem(code: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    more = {"retry-after": "2"} if code == 503 else {}
    kept = {"cache-control": "no-store", **more, **(headers or {})}
    return Response(_json(problem(code, detail)), code, kept, "application/problem+json")


def with_hub() -> Starlette:
    """The site of an operator who lets the Hub be asked."""
    return application(hub=True)
