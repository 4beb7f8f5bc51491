"""The MCP server: the API's answers as tools of a language model, with the same schemas. The official SDK does the protocol.

On stdin and stdout it is the user's own program, and a model may be a path or an id of the Hub. Over HTTP it reaches no file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import anyio
from mcp import types
from mcp.server.lowlevel import Server

from .. import inspect
from ..errors import BadInput, VramplanError
from ..report.schema import ANSWER, scenario_schema
from ..sources import only
from . import api
from .openapi import ABOUT, TEXT, asked

if TYPE_CHECKING:
    from mcp.server.context import ServerRequestContext
    from starlette.applications import Starlette

HELP = "Sizes GPU memory for training and serving language models. Bytes are integers. What is not known is refused, not guessed."
READS = types.ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True)
LIMIT = {"type": "integer", "minimum": 1, "maximum": api.MOST_MODELS}


def _inspect(asked: Mapping[str, Any]) -> dict[str, Any]:
    api.known(asked, "model")
    if "model" not in asked:
        raise BadInput("no model given")
    return inspect(asked["model"]).to_dict()


def _tool(name: str, about: str, schema: dict[str, Any], answer: dict[str, Any] | None = None) -> types.Tool:
    return types.Tool(name=name, description=about, input_schema=schema, output_schema=answer, annotations=READS)


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def tools() -> dict[str, tuple[types.Tool, Callable[[Mapping[str, Any]], dict[str, Any]]]]:
    """Every tool by its name, with what answers it."""
    about, answers = scenario_schema(), {"estimate": ANSWER}
    one = _object(["model"], model=about["properties"]["model"])
    return {
        **{name: (_tool(name, ABOUT[name], asked(name), answers.get(name)), answer) for name, answer in api.ANSWERS.items()},
        "inspect": (_tool("inspect", "What a model is made of: its parameters by part, its kinds of layers.", one), _inspect),
        "models": (_tool("models", "Models of the catalogue that the words q may mean.", _object([], q=TEXT, limit=LIMIT)), api.models),
        "gpus": (_tool("gpus", "GPUs of the catalogue whose names hold the words q.", _object([], q=TEXT)), api.gpus),
    }


def server(*places: str) -> Server[Any]:
    """The MCP server, whose models come from the catalogue and from those of "files" and "hub" that are named."""
    known = tools()

    async def listed(context: ServerRequestContext[Any], params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[tool for tool, _ in known.values()])

    async def called(context: ServerRequestContext[Any], params: types.CallToolRequestParams) -> types.CallToolResult:
        if params.name not in known:
            return _said(f"there is no tool {params.name[:60]!r}; there are {', '.join(known)}", wrong=True)
        answer = partial(_confined, known[params.name][1], params.arguments or {}, places)
        try:
            found = await anyio.to_thread.run_sync(answer)
        except VramplanError as error:
            return _said(str(error), wrong=True)
        return _said(json.dumps(found, ensure_ascii=False), found)

    return Server("vramplan", version=version("vramplan"), instructions=HELP, on_list_tools=listed, on_call_tool=called)


def _confined(answer: Callable[[Mapping[str, Any]], dict[str, Any]], asked: Mapping[str, Any], places: tuple[str, ...]) -> dict[str, Any]:
    with only(*places):
        return answer(asked)


def _said(text: str, found: dict[str, Any] | None = None, wrong: bool = False) -> types.CallToolResult:
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], structured_content=found, is_error=wrong)


def stdio() -> None:
    """Serve on stdin and stdout until the client goes."""
    from mcp.server.stdio import stdio_server

    async def run() -> None:
        async with stdio_server() as (read, write):
            own = server("files", "hub")
            await own.run(read, write, own.create_initialization_options())

    anyio.run(run)


def application(host: str = "127.0.0.1") -> Starlette:
    """The same as an ASGI application, at /mcp: stateless, so that any number of copies may answer."""
    app: Starlette = server().streamable_http_app(stateless_http=True, json_response=True, host=host, max_request_body_size=2_000_000)
    return app
