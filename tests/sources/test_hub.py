"""The real `huggingface_hub` client against a Hub on the loopback."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from huggingface_hub import constants as settings
from huggingface_hub import hf_hub_download
from loopback_hub import Hub, Repo, Sparse
from reader_samples import facts, gguf, info, pair, safetensors, tensor, text

from vramplan.errors import BadFile, BadInput, NotFound, Unreachable
from vramplan.sources import hub as source
from vramplan.sources import hub_client
from vramplan.sources.gguf_cursor import FIRST_WINDOW
from vramplan.sources.hub import THREADS
from vramplan.sources.safetensors import FIRST_READ
from vramplan.sources.stored import Found

CONFIG = {"model_type": "llama", "hidden_size": 64}
JSON = json.dumps(CONFIG).encode()
TERA = 10**12


def big(names: int = 2, size: int = TERA, prefix: str = "w") -> Sparse:
    """A safetensors file of `size` bytes of tensors."""
    each = size // names
    entries = {f"{prefix}{i}": tensor("U8", [each], each * i, each * (i + 1)) for i in range(names)}
    head = safetensors(entries)
    return Sparse(head, len(head) + each * names)


def big_gguf(name: str = "w", *pairs: bytes) -> Sparse:
    head = gguf(pairs, (info(name, (2**40,)),))
    return Sparse(head, len(head) + 2**42)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no token of the user's own, and no waiting between attempts."""
    monkeypatch.setattr(settings, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(settings, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(settings, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_client, "PAUSES", (0.0, 0.01))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub({}) as server:
        yield server


def find(hub: Hub, name: str, **options: str | None) -> Found:
    return source.find(name, endpoint=hub.url, **options)


def repo(files: Mapping[str, bytes | Sparse], **options: object) -> Repo:
    return Repo({"main": files}, **options)  # type: ignore[arg-type]


def one_line(error: pytest.ExceptionInfo[Exception], *absent: str) -> str:
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 300
    for word in ("http://", "Traceback", "Root=1", "hf_", *absent):
        assert word not in message
    return message


def test_config_and_header_of_a_single_file(hub: Hub) -> None:
    hub.repos["org/model"] = repo({"config.json": JSON, "model.safetensors": big()})
    found = find(hub, "org/model")
    assert (found.id, found.config) == ("org/model", CONFIG)
    assert found.origin == "Hugging Face Hub org/model at revision main"
    assert found.header is not None
    assert facts(found.header) == [("w0", "uint8", (TERA // 2,), TERA // 2), ("w1", "uint8", (TERA // 2,), TERA // 2)]


@pytest.mark.parametrize("names", [2, 2000])
def test_only_the_header_is_transferred(hub: Hub, names: int) -> None:
    file = big(names)
    hub.repos["org/model"] = repo({"config.json": JSON, "model.safetensors": file})
    find(hub, "org/model")
    sent = hub.of("model.safetensors")
    assert all(request.range for request in sent)
    assert sum(request.sent for request in sent) == max(FIRST_READ, len(file.head))
    assert len(sent) == (1 if len(file.head) <= FIRST_READ else 2)


def test_a_server_without_ranges_costs_no_more_than_what_is_read(hub: Hub) -> None:
    hub.ranges = False
    hub.repos["org/small"] = repo({"model.safetensors": big()})
    header = find(hub, "org/small").header
    assert header is not None
    assert len(header.tensors) == 2
    hub.repos["org/large"] = repo({"model.safetensors": big(2000)})
    with pytest.raises(Unreachable, match="does not answer range requests"):
        find(hub, "org/large")


def shards(n: int) -> dict[str, bytes | Sparse]:
    names = [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
    index = {"metadata": {}, "weight_map": {f"{i}.w{j}": name for i, name in enumerate(names) for j in range(2)}}
    files: dict[str, bytes | Sparse] = {name: big(2, 10**10, f"{i}.w") for i, name in enumerate(names)}
    return files | {"config.json": JSON, "model.safetensors.index.json": json.dumps(index).encode(), "consolidated.safetensors": big()}


def test_160_shards_take_one_request_each(hub: Hub) -> None:
    hub.repos["org/model"] = repo(shards(160))
    header = find(hub, "org/model").header
    assert header is not None
    assert sum(tensor.nbytes for tensor in header.tensors) == 160 * 10**10
    sent = [request for request in hub.requests if "-of-00160" in request.path and request.sent]
    assert len(sent) == 160
    assert sum(request.sent for request in sent) == 160 * FIRST_READ
    assert not hub.of("consolidated.safetensors")


def test_shards_are_read_16_at_a_time(hub: Hub) -> None:
    """The server answers only when 16 requests wait at once: read one by one, this would end in its timeout."""
    hub.slow = threading.Barrier(THREADS)
    hub.repos["org/model"] = repo(shards(32))
    header = find(hub, "org/model").header
    assert header is not None
    assert len(header.tensors) == 64


def test_a_range_that_fails_is_asked_for_again(hub: Hub) -> None:
    hub.repos["org/model"] = repo({"model.safetensors": big()})
    hub.failures = 2
    assert find(hub, "org/model").header is not None
    hub.failures = 3
    with pytest.raises(Unreachable) as error:
        find(hub, "org/model")
    assert "answered 503" in one_line(error)


def test_a_damaged_header_is_named_by_its_file(hub: Hub) -> None:
    files = shards(3)
    files["model-00002-of-00003.safetensors"] = Sparse(safetensors({}, length=2**60), TERA)
    hub.repos["org/model"] = repo(files)
    with pytest.raises(BadFile, match=r"^org/model/model-00002-of-00003.safetensors: not a safetensors file"):
        find(hub, "org/model")


def test_an_index_that_names_missing_or_outside_shards(hub: Hub) -> None:
    files = shards(3)
    del files["model-00002-of-00003.safetensors"]
    hub.repos["org/model"] = repo(files)
    with pytest.raises(NotFound, match="1 of the model's 3 files are not there"):
        find(hub, "org/model")
    index = json.dumps({"weight_map": {"w": "../../other/model/resolve/main/x.safetensors"}}).encode()
    hub.repos["org/evil"] = repo({"model.safetensors.index.json": index})
    with pytest.raises(BadFile, match="must be the plain name"):
        find(hub, "org/evil")


def test_huge_configs_and_indexes_are_not_fetched(hub: Hub) -> None:
    hub.repos["org/a"] = repo({"config.json": Sparse(b"{", 10_000_001)})
    hub.repos["org/b"] = repo({"model.safetensors.index.json": Sparse(b"{", 100_000_001)})
    for name in "ab":
        with pytest.raises(BadFile, match="bytes; at most"):
            find(hub, f"org/{name}")
    assert not hub.of("config.json")
    assert not hub.of("index.json")


def test_broken_configs_are_refused(hub: Hub) -> None:
    hub.repos["org/model"] = repo({"config.json": b'{"a": 1, "a": 2}'})
    with pytest.raises(BadFile, match="key 'a' is there twice"):
        find(hub, "org/model")


def test_modelopt_quantisation_beside_the_config(hub: Hub) -> None:
    quant = json.dumps({"quantization": {"quant_algo": "FP8"}}).encode()
    hub.repos["org/model"] = repo({"config.json": JSON, "hf_quant_config.json": quant})
    assert find(hub, "org/model").config == {**CONFIG, "quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}


def test_a_config_without_weights_that_we_read_is_enough(hub: Hub) -> None:
    hub.repos["org/model"] = repo({"config.json": JSON, "pytorch_model.bin": b"x"})
    found = find(hub, "org/model")
    assert (found.config, found.header) == (CONFIG, None)


def test_neither_config_nor_weights(hub: Hub) -> None:
    hub.repos["org/model"] = repo({"README.md": b"x", "pytorch_model.bin": b"x"})
    with pytest.raises(NotFound) as error:
        find(hub, "org/model")
    assert one_line(error) == "org/model at revision main holds no config.json, .safetensors or .gguf"
    with pytest.raises(NotFound, match=r"org/model at revision main holds no \.gguf"):
        find(hub, "org/model:Q4_K_M")


def test_revisions(hub: Hub) -> None:
    other = {"config.json": json.dumps({"model_type": "gpt2"}).encode()}
    hub.repos["org/model"] = Repo({"main": {"config.json": JSON}, "v2": other})
    assert find(hub, "org/model", revision="v2").config == find(hub, "org/model@v2").config == {"model_type": "gpt2"}
    assert find(hub, "org/model").config == CONFIG
    assert find(hub, "org/model@v2").origin == "Hugging Face Hub org/model at revision v2"
    with pytest.raises(NotFound) as error:
        find(hub, "org/model@v3")
    assert "org/model has no revision 'v3'" in one_line(error)


def test_ranges_are_of_the_commit_that_was_listed(hub: Hub) -> None:
    hub.repos["org/model"] = repo({"model.safetensors": big()})
    find(hub, "org/model")
    commit = hub.repos["org/model"].commit("main")
    assert [r.path for r in hub.requests if "/resolve/" in r.path] == [f"/org/model/resolve/{commit}/model.safetensors"]


@pytest.mark.parametrize("given", ["argument", "environment"])
def test_the_token_is_sent_to_the_hub_and_not_to_where_it_redirects(hub: Hub, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Hub({}) as cdn:
        files = {"config.json": JSON, "model.safetensors": big()}
        hub.repos["org/model"] = cdn.repos["org/model"] = repo(files, token="hf_good", private=True, cdn=cdn.url)
        if given == "environment":
            monkeypatch.setenv("HF_TOKEN", "hf_good")
        assert find(hub, "org/model", token="hf_good" if given == "argument" else None).header is not None
        assert {request.token for request in hub.requests} == {"Bearer hf_good"}
        assert [request.token for request in cdn.requests] == [None]


def test_gated_models_ask_for_the_licence_and_a_token(hub: Hub) -> None:
    hub.repos["org/gated"] = repo({"config.json": JSON, "model.safetensors": big()}, token="hf_good")
    hub.repos["org/weights"] = repo({"model.safetensors": big()}, token="hf_good")
    for name in ("org/gated", "org/weights"):
        for token in (None, "hf_wrong"):
            with pytest.raises(Unreachable) as error:
                find(hub, name, token=token)
            assert f"{name} is gated: accept its licence" in one_line(error)
            assert "set HF_TOKEN" in str(error.value)
        assert find(hub, name, token="hf_good").header is not None


def test_missing_and_private_models_look_alike(hub: Hub) -> None:
    hub.repos["org/private"] = repo({"config.json": JSON}, token="hf_good", private=True)
    for name in ("org/missing", "org/private"):
        for token in (None, "hf_wrong"):
            with pytest.raises(NotFound) as error:
                find(hub, name, token=token)
            assert one_line(error, "Secret").startswith(f"no model {name} at 127.0.0.1:")


@pytest.mark.parametrize("token", ["hf_a b", "hf_a\nInjected: 1", "hf_ä", "hf_a\0"])
def test_tokens_that_no_header_may_carry_are_refused_unshown(hub: Hub, token: str) -> None:
    with pytest.raises(BadInput) as error:
        find(hub, "org/model", token=token)
    one_line(error, token)
    assert not hub.requests


@pytest.mark.parametrize(
    "name",
    [
        "", "/", "a/b/c", "org/", "/etc/passwd", "../../etc", "org/model:", "org/model@", "org/model:Q4 K", "a b/c", "org/x\n",
        "org/model.git", "org--x/model", "a" * 101, "org/" + "b" * 97, "org/model/x.gguf:Q4_K_M", "http://host/org/model", "-/-",
    ],
)  # fmt: skip
def test_names_that_are_no_repositories(hub: Hub, name: str) -> None:
    with pytest.raises((BadInput, NotFound)) as error:
        find(hub, name)
    assert str(error.value).isprintable()
    assert all("/api/models/" in request.path for request in hub.requests)


def ggufs() -> dict[str, bytes | Sparse]:
    split = {
        f"Q8_0/m-Q8_0-{no + 1:05d}-of-00002.gguf": big_gguf(
            f"p{no}", pair("split.no", 2, bytes([no, 0])), pair("split.count", 2, b"\2\0"), pair("general.name", 8, text(f"part {no}"))
        )
        for no in range(2)
    }
    return {"m-Q4_K_M.gguf": big_gguf("a"), "m-UD-IQ2_M.gguf": big_gguf("b"), "mmproj-F16.gguf": big_gguf("c"), **split}


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("org/model:Q4_K_M", ["a"]), ("org/model:iq2_m", ["b"]), ("org/model:q8_0", ["p0", "p1"]), ("org/model/mmproj-F16.gguf", ["c"]),
        ("org/model/Q8_0/m-Q8_0-00002-of-00002.gguf", ["p0", "p1"]), ("org/model@main:Q4_K_M", ["a"]),
        ("org/model/m-Q4_K_M.gguf@main", ["a"]),
    ],
)  # fmt: skip
def test_gguf_files_by_quantisation_or_name(hub: Hub, name: str, tensors: list[str]) -> None:
    hub.repos["org/model"] = repo({**ggufs(), "config.json": JSON})
    found = find(hub, name)
    assert (found.id, found.config) == ("org/model", None)
    assert found.header is not None
    assert [t.name for t in found.header.tensors] == tensors
    sent = [request.sent for request in hub.requests if ".gguf" in request.path and request.sent]
    assert sent == [FIRST_WINDOW] * len(tensors)


def test_gguf_repositories_without_a_choice(hub: Hub) -> None:
    hub.repos["org/one"] = repo({"m-Q4_K_M.gguf": big_gguf("a"), "mmproj-F16.gguf": big_gguf("b")})
    header = find(hub, "org/one").header
    assert header is not None
    assert [t.name for t in header.tensors] == ["a"]
    hub.repos["org/several"] = repo(ggufs())
    with pytest.raises(BadInput) as error:
        find(hub, "org/several")
    assert one_line(error) == "org/several: holds 3 GGUF files; name one of Q4_K_M, Q8_0, UD-IQ2_M"
    with pytest.raises(BadInput, match=r"no GGUF file of 'Q4_K_S'; there are .*did you mean 'Q4_K_M'"):
        find(hub, "org/several:Q4_K_S")
    with pytest.raises(NotFound, match=r"not there, such as 'm-Q5_K_M\.gguf'"):
        find(hub, "org/several/m-Q5_K_M.gguf")


def test_offline_with_a_warm_cache(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos["org/model"] = repo(shards(3))
    find(hub, "org/model")
    before = len(hub.requests)
    monkeypatch.setattr(settings, "HF_HUB_OFFLINE", True)
    found = find(hub, "org/model")
    assert (found.id, found.config, found.header) == ("org/model", CONFIG, None)
    assert found.origin == "cache of the Hugging Face Hub, org/model at revision main"
    assert len(hub.requests) == before


def test_offline_with_the_whole_model_in_the_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    small = safetensors({"w": tensor()}, 24)
    hub.repos["org/model"] = repo({"config.json": JSON, "model.safetensors": small, "m.gguf": gguf()})
    for name in ("config.json", "model.safetensors", "m.gguf"):
        hf_hub_download("org/model", name, endpoint=hub.url)
    monkeypatch.setattr(settings, "HF_HUB_OFFLINE", True)
    found = find(hub, "org/model")
    assert found.header is not None
    assert (found.config, facts(found.header)) == (CONFIG, [("w", "fp32", (2, 3), 24)])
    found = find(hub, "org/model/m.gguf")
    assert (found.config, found.header) == (None, type(found.header)((), {}))


def test_offline_with_a_cold_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "HF_HUB_OFFLINE", True)
    for name in ("org/model", "org/model:Q4_K_M", "org/model/m.gguf"):
        with pytest.raises(Unreachable) as error:
            find(hub, name)
        assert "is not in the cache at revision 'main', and HF_HUB_OFFLINE forbids" in one_line(error)
    assert not hub.requests


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_no_server(hub: Hub, capfd: pytest.CaptureFixture[str]) -> None:
    hub.repos["org/model"] = repo({"config.json": JSON})
    find(hub, "org/model")
    start = time.monotonic()
    with pytest.raises(Unreachable) as error:
        source.find("org/cold", endpoint=closed_port())
    assert "cannot reach the Hub at 127.0.0.1:" in one_line(error)
    assert source.find("org/model", endpoint=closed_port()).config == CONFIG
    assert time.monotonic() - start < 5
    assert capfd.readouterr() == ("", "")


def test_a_private_endpoints_password_is_not_shown() -> None:
    with pytest.raises(Unreachable) as error:
        source.find("org/model", endpoint=closed_port().replace("127", "user:secret@127"))
    one_line(error, "secret")


@pytest.mark.parametrize("answer", [b"{}", b"[]", b"null", b"", b"<html>", b'{"id": "x", "siblings": 3}', b'{"id": "x", "siblings": [3]}'])
def test_servers_that_answer_nonsense(hub: Hub, answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    handler = hub._server.RequestHandlerClass
    monkeypatch.setattr(handler, "_list", lambda self, id, revision: self._answer(200, answer, {}))
    hub.repos["org/model"] = repo({})
    with pytest.raises((Unreachable, NotFound)) as error:
        find(hub, "org/model")
    one_line(error)


def test_a_server_that_drips_is_left(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "DEADLINE", 0.2)

    def drip(self: object, request: object, file: object, headers: object) -> None:
        self._answer(206, b"", {}, 10**6)  # type: ignore[attr-defined]
        for _ in range(50):
            time.sleep(0.05)
            try:
                self.wfile.write(b"x")  # type: ignore[attr-defined]
            except OSError:
                return

    monkeypatch.setattr(hub._server.RequestHandlerClass, "_serve", drip)
    hub.repos["org/model"] = repo({"model.safetensors": big()})
    with pytest.raises(Unreachable, match="took more than"):
        find(hub, "org/model")


def in_a_process(code: str, **environment: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr


def test_settings_of_the_environment_are_followed(hub: Hub, cache: Path) -> None:
    hub.repos["org/model"] = repo({"config.json": JSON, "model.safetensors": big()}, token="hf_good", private=True)
    code = "from vramplan.sources.hub import find; found = find('org/model'); print(found.config['model_type'], found.header is None)"
    environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_good", "HF_HUB_CACHE": str(cache)}
    assert in_a_process(code, **environment) == "llama False"
    before = len(hub.requests)
    assert in_a_process(code, **environment, HF_HUB_OFFLINE="1") == "llama True"
    assert len(hub.requests) == before


def test_hub_libraries_are_not_imported_before_they_are_needed() -> None:
    assert in_a_process("import sys, vramplan.sources.hub; print('huggingface_hub' in sys.modules)") == "False"
