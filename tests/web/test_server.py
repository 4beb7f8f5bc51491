"""The site as a server: the API's figures are the command line's, what is hostile is refused in a line, and nothing reaches a file."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from site_of_tests import ADDRESSES, HIDDEN, tiny_gguf
from starlette.testclient import TestClient

from harness import Run
from vramplan.report.schema import ANSWER, scenario_schema
from vramplan.scenario import keys
from vramplan.sources import only, resolve
from vramplan.web import api, openapi
from vramplan.web.address import given, pairs
from vramplan.web.server import MAX_BODY, application
from vramplan.web.work import Work


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with TestClient(application(), raise_server_exceptions=False, follow_redirects=False) as made:
        yield made


def refusal(response: Any, status: int) -> str:
    """The detail of a problem, which has that status and is one line."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found = response.json()
    assert found["status"] == status
    assert set(found) == {"type", "title", "status", "detail"}
    assert "\n" not in found["detail"]
    assert "Traceback" not in found["detail"]
    return str(found["detail"])


@pytest.mark.parametrize("href", ADDRESSES)
def test_the_api_says_what_the_command_line_says(client: TestClient, run: Run, href: str) -> None:
    asked = given(pairs(href[2:]))[0]
    told = json.loads(run("estimate", "--scenario", "-", "--json", stdin=json.dumps(asked).encode()).out)
    posted, got = client.post("/api/v1/estimate", json=asked), client.get("/api/v1/estimate" + href[1:])
    assert posted.json() == got.json() == told
    assert posted.content == got.content
    jsonschema.validate(told, ANSWER, jsonschema.Draft202012Validator)
    jsonschema.validate(asked, scenario_schema(), jsonschema.Draft202012Validator)


def test_searches_say_what_the_command_line_says(client: TestClient, run: Run) -> None:
    asked = {"model": "openai-community/gpt2", "gpu": "gtx-1060-6gb", "task": "train", "micro_batch": 16, "sequence_length": 1024}
    for verb in ("fix", "max"):
        told = json.loads(run(verb, "--scenario", "-", "--json", stdin=json.dumps(asked).encode()).out)
        assert client.post(f"/api/v1/{verb}", json=asked).json() == told


def test_models_and_cards_are_found(client: TestClient, run: Run) -> None:
    told = json.loads(run("models", "llama", "3.1", "8b", "--json").out)
    assert client.get("/api/v1/models?q=llama 3.1 8b").json()["models"] == told
    told = json.loads(run("gpus", "4090", "--json").out)
    assert client.get("/api/v1/gpus?q=4090").json()["gpus"] == told
    assert "limit" in refusal(client.get("/api/v1/models?limit=1000"), 400)
    assert "unknown parameter" in refusal(client.get("/api/v1/gpus?x=1"), 400)


def test_an_answer_is_not_sent_twice(client: TestClient) -> None:
    for path in ("/api/v1/estimate?model=gpt2", "/?model=gpt2", "/api/v1/openapi.json"):
        first = client.get(path)
        assert "max-age" in first.headers["cache-control"]
        again = client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    assert "immutable" in client.get("/static/style.css").headers["cache-control"]
    assert client.get("/?model=none").headers["cache-control"] == "no-store"


def test_every_answer_is_kept_to_this_host(client: TestClient) -> None:
    for path in ("/", "/api/v1/models", "/static/page.js", "/nothing", "/api/nothing"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert "set-cookie" not in headers
        assert headers["x-content-type-options"] == "nosniff"
    html = client.get("/?model=gpt2&gpu=rtx-4090").text
    assert " style=" not in html
    assert "<style" not in html
    assert "onclick" not in html


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400), (b"[]", 400), (b"{", 400), (b"\xff\xfe", 400), (b'{"model": "gpt2", "model": "gpt2"}', 400), (b'{"model": NaN}', 400),
        (b'{"model": "gpt2", "gpu": "rtx-4090", "colour": "red"}', 400), (b'{"model": "gpt2", "context_length": 1e400}', 400),
        (b'{"model": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400), (b'{"model": {"model_type": "martian"}}', 422),
        (b'{"model": "no/such-model-here"}', 404), (b'{"model": "gpt2", "gpu": "no such card"}', 404), (b" " * (MAX_BODY + 1), 413),
        (b'{"model": {"model_type": "llama", "num_hidden_layers": 99999999999999999}}', 400),
        (b'{"model": {"model_type": "llama", "text_config": {"num_hidden_layers": 513}}}', 400),
        (b'{"model": "gpt2", "draft_model": {"model_type": "gpt2", "n_layer": 5000}}', 400),
    ],
)  # fmt: skip
def test_hostile_bodies_are_refused_in_a_line(client: TestClient, body: bytes, status: int) -> None:
    found = client.post("/api/v1/estimate", content=body)
    if status == 422:
        assert found.status_code in (400, 422)
        status = found.status_code
    refusal(found, status)


def test_a_body_that_hides_its_length_is_bounded(client: TestClient) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(MAX_BODY // 100_000 + 2):
            yield b" " * 100_000

    assert "bytes" in refusal(client.post("/api/v1/estimate", content=pieces()), 413)


def test_addresses_that_are_none(client: TestClient) -> None:
    refusal(client.get("/api/v1/nothing"), 404)
    refusal(client.delete("/api/v1/estimate"), 405)
    refusal(client.get("/api/v1/inspect"), 405)
    assert client.get("/static/../server.py").status_code == 404
    assert client.get("/static/%2e%2e/server.py").status_code == 404
    assert client.get("/?model=" + "x" * 40_000).status_code == 400
    assert client.get("/healthz").text == "ok\n"


def test_no_request_reaches_a_file_or_the_hub(client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 2}))

    def never(*given: object) -> None:
        raise AssertionError("a file or the Hub was asked")

    monkeypatch.setattr("vramplan.sources.local.find", never)
    monkeypatch.setattr("vramplan.sources.hub.find", never)
    for model in (str(config), str(tmp_path), "config.json", "../config.json", "hf:org/name", "org/not-in-the-catalogue", "~/x.gguf"):
        for key in ("model", "draft_model"):
            asked = {"model": "gpt2", "gpu": "rtx-4090", key: model}
            assert client.post("/api/v1/estimate", json=asked).status_code in (400, 404, 422), model
        assert client.get("/", params={"model": model}).status_code in (400, 404)
    with only(), pytest.raises(Exception, match="catalogue"):
        resolve(str(config))
    assert client.get("/models/..%2f..%2fetc/passwd").status_code == 404


def test_the_hub_is_asked_where_the_operator_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find(name: str) -> None:
        from vramplan.errors import Unreachable

        asked.append(name)
        raise Unreachable("no network here")

    monkeypatch.setattr("vramplan.sources.hub.find", find)
    with TestClient(application(hub=True)) as open_to_it:
        assert "no network" in refusal(open_to_it.get("/api/v1/estimate?model=org/not-in-the-catalogue"), 503)
        assert "id of the Hugging Face Hub" in open_to_it.get("/").text
    assert asked == ["org/not-in-the-catalogue"]


def test_a_gguf_header_gives_an_address(client: TestClient, tmp_path: Path) -> None:
    data = tiny_gguf(tmp_path / "tiny-Q8_0.gguf").read_bytes()
    found = client.post("/api/v1/inspect?name=tiny-Q8_0.gguf", content=data).json()
    assert found["config"]["hidden_size"] == HIDDEN
    values, rest = given(pairs(found["address"][2:]))
    assert (values["weights"], values["engine"], rest) == ("Q8_0", "llama.cpp", {})
    assert client.get(found["address"]).status_code == 200
    assert client.post("/api/v1/inspect", content=data[:500]).status_code == 400


def test_a_safetensors_header_says_its_bytes_and_asks_for_the_config(client: TestClient) -> None:
    header = json.dumps({"w": {"dtype": "BF16", "shape": [4, 4], "data_offsets": [0, 32]}}).encode()
    found = client.post("/api/v1/inspect?name=a.safetensors", content=struct.pack("<Q", len(header)) + header).json()
    assert (found["stored"], found["address"]) == ({"bf16": 32}, None)
    assert "config.json" in found["detail"]


def test_a_config_gives_an_address_unless_it_is_too_long(client: TestClient) -> None:
    config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 100, "n_positions": 64}
    found = client.post("/api/v1/inspect?name=config.json", json=config).json()
    assert client.get(found["address"]).status_code == 200
    found = client.post("/api/v1/inspect?name=config.json", json=config | {"id2label": {str(n): "x" * 50 for n in range(900)}}).json()
    assert found["address"] is None
    refusal(client.post("/api/v1/inspect", content=b"GGUF" + b"\xff" * 100), 400)


def test_what_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[str] = []

    def endless(asked: Any) -> dict[str, Any]:
        try:
            while True:
                sum(range(100))
        finally:
            ended.append("stopped")

    monkeypatch.setitem(api.ANSWERS, "estimate", endless)
    with TestClient(application(work=Work(threads=1, waiting=0, seconds=0.1))) as hurried:
        late = hurried.get("/api/v1/estimate?model=gpt2")
        assert "within" in refusal(late, 503)
        assert late.headers["retry-after"]
        time.sleep(0.3)
        assert ended == ["stopped"]
        assert hurried.get("/api/v1/models").status_code == 200


def test_no_more_waits_than_may() -> None:
    async def ask() -> list[object]:
        work = Work(threads=1, waiting=1, seconds=5)
        return await asyncio.gather(*(work.run(lambda: time.sleep(0.1)) for _ in range(3)), return_exceptions=True)

    assert [str(found) for found in asyncio.run(ask())] == ["None", "None", "too much is asked at once; ask again in a moment"]


def test_the_document_is_of_the_same_keys() -> None:
    found: Any = openapi.document()
    assert set(found["components"]["schemas"]["Scenario"]["properties"]) == {"model", *keys()}
    assert {path.rpartition("/")[2] for path in found["paths"]} == {*api.ANSWERS, "models", "gpus", "inspect"}
    for path in found["paths"].values():
        for operation in path.values():
            assert {"200", "400", "503"} <= set(operation["responses"])
    jsonschema.Draft202012Validator.check_schema(scenario_schema())
    jsonschema.Draft202012Validator.check_schema(ANSWER)


def test_the_example_is_answered(client: TestClient) -> None:
    found: Any = openapi.document()
    example = found["paths"]["/api/v1/estimate"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert client.post("/api/v1/estimate", json=example).status_code == 200
