"""The MCP server, asked by the official SDK's own client: over stdin and stdout, and over HTTP."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from vramplan import estimate
from vramplan.report.schema import scenario_schema

mcp = pytest.importorskip("mcp")
pytestmark = pytest.mark.slow

SCENARIO = {"model": "meta-llama/Llama-3.1-8B", "task": "infer", "gpu": "rtx-4090", "context_length": 8192}
PROGRAM = [sys.executable, "-c", "from vramplan.cli import main; main()", "mcp"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    process = subprocess.Popen([*PROGRAM, "--http", "--port", str(port)], stderr=subprocess.DEVNULL)
    for _ in range(200):
        time.sleep(0.1)
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                break
    yield f"http://127.0.0.1:{port}/mcp"
    process.terminate()
    process.wait()


@pytest.fixture(params=["stdio", "http"])
def place(request: pytest.FixtureRequest) -> Any:
    if request.param == "http":
        return request.getfixturevalue("address")
    from mcp.client.stdio import StdioServerParameters

    return StdioServerParameters(command=PROGRAM[0], args=PROGRAM[1:])


def asked(place: Any, name: str, arguments: dict[str, Any]) -> Any:
    async def ask() -> Any:
        async with mcp.Client(place) as client:
            return await client.call_tool(name, arguments)

    return asyncio.run(ask())


def test_tools_with_the_scenario_s_own_schema(place: Any) -> None:
    async def ask() -> Any:
        async with mcp.Client(place) as client:
            return await client.list_tools()

    tools = {tool.name: tool for tool in asyncio.run(ask()).tools}
    assert {"estimate", "plan", "fix", "max", "buy", "inspect", "models", "gpus"} <= set(tools)
    assert tools["estimate"].input_schema == json.loads(json.dumps(scenario_schema()))
    assert all(tool.annotations.read_only_hint for tool in tools.values())


def test_the_same_answer_as_everywhere(place: Any) -> None:
    answer = asked(place, "estimate", SCENARIO)
    assert not answer.is_error
    assert answer.structured_content == json.loads(json.dumps(estimate(**SCENARIO).to_dict()))
    assert json.loads(answer.content[0].text) == answer.structured_content


def test_what_makes_it_fit(place: Any) -> None:
    answer = asked(place, "fix", {"model": "meta-llama/Llama-3.1-8B", "task": "train", "method": "lora", "gpu": "rtx-3090"})
    assert answer.structured_content["alone"]


def test_a_wrong_name_is_an_answer_that_names_the_nearest(place: Any) -> None:
    answer = asked(place, "estimate", {**SCENARIO, "gpu": "rtx-4091"})
    assert answer.is_error
    assert "rtx-4090" in answer.content[0].text
    assert asked(place, "estimat", SCENARIO).is_error


def test_over_http_no_file_is_reached(address: str) -> None:
    answer = asked(address, "inspect", {"model": "/etc/passwd"})
    assert answer.is_error
    assert "catalogue" in answer.content[0].text
