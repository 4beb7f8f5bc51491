"""An exported copy of the site: what is written, that every link leads somewhere, and what its Python answers. No browser here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from site_of_tests import ADDRESSES, links, tiny_gguf

from vramplan.catalog.gpus import all_gpus
from vramplan.errors import BadInput
from vramplan.estimate import estimate
from vramplan.web import api, documents, openapi, pages, site
from vramplan.web.browser import reply
from vramplan.web.pages import MENU

BASE = "/vramplan/"


@pytest.fixture(scope="module")
def pyodide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the names of Pyodide's files, each of its name's bytes."""
    folder = tmp_path_factory.mktemp("pyodide")
    for name in site.PYODIDE:
        (folder / name).write_text(name)
    return folder


@pytest.fixture(scope="module", autouse=True)
def few_cards() -> Any:
    """Pages of two cards only: each is eighty estimates."""
    few = all_gpus()[:2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "all_gpus", lambda: few)
        yield


@pytest.fixture(scope="module")
def copy(pyodide: Path) -> dict[str, bytes]:
    return dict(site.files(pyodide, BASE))


def html(copy: dict[str, bytes]) -> dict[str, str]:
    return {name: data.decode() for name, data in copy.items() if name.endswith(".html")}


def test_menu_documents_and_cards_are_files(copy: dict[str, bytes]) -> None:
    made = {name.removesuffix("index.html").rstrip("/") for name in html(copy)} - {"404.html"}
    menu = {href.strip("/") for href, _ in MENU}
    assert made == menu | {documents.home(name).strip("/") for name in documents.names()} | {f"cards/{gpu.id}" for gpu in all_gpus()[:2]}
    assert {f"static/{path.name}" for path in pages.STATIC.iterdir()} | {f"python/{name}" for name in site.PYODIDE} < set(copy)
    manifest = json.loads(copy["site.json"])
    assert manifest["files"] == sorted(copy)
    loaded = ("python/pyodide.asm.wasm", "python/python_stdlib.zip", manifest["packages"])
    assert manifest["bytes"] == sum(len(copy[name]) for name in loaded)


def test_every_link_leads_to_a_file_or_is_answered(copy: dict[str, bytes]) -> None:
    """An address without a query leads to its file; of the others one of each kind on each page is asked."""
    kinds: set[object] = set()
    for name, text in html(copy).items():
        for link in links(text):
            assert link.startswith(BASE), (name, link)
            path, _, query = link.removeprefix(BASE[:-1]).partition("?")
            if path.startswith("/static/"):
                assert path[1:] in copy, (name, link)
            elif query or site.file_of(path) not in copy:
                kind = path if path.startswith("/how") else (path.split("/")[1], "/" in path[1:], re.sub("=[^&]*", "", query))
                assert kind in kinds or reply(path, query, None, BASE).status == 200, (name, link)
                kinds.add(kind)
    assert len(kinds) > 8


def test_no_other_host_is_named_by_what_a_browser_loads(copy: dict[str, bytes]) -> None:
    for name, text in html(copy).items():
        assert re.findall(r'(?:src|action|data-src)="(?:[a-z]+:)?//', text) == [], name
        assert re.findall(r'<link[^>]*href="(?:[a-z]+:)?//', text) == [], name
    for name in ("static/page.js", "static/site.js", "static/worker.js", "static/style.css", "site.json"):
        assert not re.search(rb"//\w|https?:", re.sub(rb"(?m)^\s*//.*$", b"", copy[name])), name


def test_a_page_has_its_policy_before_its_scripts_and_ours_before_the_pages(copy: dict[str, bytes]) -> None:
    for name, text in html(copy).items():
        policy, ours, theirs = (text.index(part) for part in ("content-security-policy", "static/site.js", "static/page.js"))
        assert policy < ours < theirs, name
        assert text.count("<script ") == text.count("<script") == 2, name
        assert text.count("<noscript>") == 1, name
        assert not re.search(r"\s(style|on\w+)=|javascript:", re.sub(r"<pre.*?</pre>|<code.*?</code>", "", text, flags=re.DOTALL)), name
        assert ("data-missing" in text) == (name == "404.html")


def test_python_has_the_packages_and_nothing_compiled(copy: dict[str, bytes], tmp_path: Path) -> None:
    name = json.loads(copy["site.json"])["packages"]
    (tmp_path / "packages.zip").write_bytes(copy[name])
    held = ZipFile(tmp_path / "packages.zip").namelist()
    for wanted in ("vramplan/web/pages.py", "vramplan/web/templates/base.html", "vramplan/docs/claims.md", "vramplan/catalog/models.txt"):
        assert wanted in held
    for wanted in ("jinja2/environment.py", "markupsafe/_native.py", "markdown_it/main.py", "mdurl/_parse.py"):
        assert wanted in held
    assert [one for one in held if re.search(r"\.(so|pyd|pyc|c|dylib)$|__pycache__|\.\.", one)] == []
    for package in ("jinja2", "markupsafe", "markdown_it_py", "mdurl"):
        assert any(one.startswith(package) and "LICENSE" in one for one in held), package


def test_two_copies_are_equal(copy: dict[str, bytes], pyodide: Path) -> None:
    assert dict(site.files(pyodide, BASE)) == copy


def test_an_earlier_copy_is_replaced_and_nothing_else(pyodide: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    (folder / ".git").mkdir(parents=True)
    written = set(site.write(folder, pyodide))
    listed = json.loads((folder / "site.json").read_text())
    (folder / "old.html").touch()
    (folder / "CNAME").write_text("mine")
    (tmp_path / "outside").touch()
    (folder / "site.json").write_text(json.dumps({**listed, "files": [*listed["files"], "old.html", "../outside"]}))
    assert set(site.write(folder, pyodide)) == written
    assert not (folder / "old.html").exists()
    assert (folder / "CNAME").read_text() == "mine"
    assert (tmp_path / "outside").exists()
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == written | {"CNAME"}


def test_it_refuses_in_one_line(pyodide: Path, tmp_path: Path, run: Any) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    wrong = {
        "npm install pyodide": (tmp_path / "new", "--pyodide", tmp_path),
        "holds no copy of the site": (tmp_path / "full", "--pyodide", pyodide),
        "must be the path of a folder": (tmp_path / "new", "--pyodide", pyodide, "--base", "vramplan"),
    }
    for said, words in wrong.items():
        done = run("export-site", *map(str, words))
        assert done.status == 2
        assert said in done.err
        assert done.err.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine.txt"]
    for base in ("vramplan/", "/vramplan", '/"/', "//host/", "/a b/"):
        with pytest.raises(BadInput):
            next(site.files(pyodide, base))


@pytest.mark.parametrize("href", ADDRESSES)
def test_a_reply_is_the_page_and_the_data_of_the_same_address(href: str) -> None:
    query = href.partition("?")[2]
    assert reply("/", query) == (200, "text/html", pages.page("/", query).html)
    values = dict(one.split("=") for one in query.split("&"))
    assert json.loads(reply("/api/v1/estimate", query).text) == json.loads(json.dumps(estimate(**values).to_dict()))


def test_replies_lead_and_refuse_as_the_server_does(tmp_path: Path) -> None:
    assert reply("/", "model=gpt2&gpu=", None, BASE) == (303, "text/html", "/vramplan/?model=gpt2")
    assert reply("/nothing").status == 404
    data = tiny_gguf(tmp_path / "tiny-F16.gguf").read_bytes()
    found = json.loads(reply("/api/v1/inspect", "name=tiny-F16.gguf", memoryview(data), BASE).text)
    assert found["address"] == BASE[:-1] + str(api.inspect(data, "tiny-F16.gguf")["address"])
    assert json.loads(reply("/api/v1/models", "q=gpt2&limit=3").text) == api.models({"q": "gpt2", "limit": "3"})
    assert json.loads(reply("/api/v1/gpus", "q=4090").text) == json.loads(json.dumps(api.gpus({"q": "4090"})))
    assert json.loads(reply("/api/v1/openapi.json").text) == openapi.document()
    for path, query, code in (
        ("estimate", "model=none", 404),
        ("estimate", "model=gpt2&nothing=1", 400),
        ("inspect", "", 404),
        ("x", "", 404),
    ):
        refused = reply(f"/api/v1/{path}", query)
        assert (refused.status, refused.kind) == (code, "application/problem+json")
        assert json.loads(refused.text)["status"] == code


def test_a_reply_reaches_no_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 100, "n_positions": 64}')
    assert reply("/api/v1/estimate", f"model={path}").status == 404
