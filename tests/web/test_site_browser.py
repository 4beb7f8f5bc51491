"""An exported copy of the site in Debian's Chromium, from a host of files: Python in the browser answers what the server would.

`PYODIDE` names the folder of the npm package (`npm install pyodide`); skipped without, and without playwright and a Chromium.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="pip install 'vramplan[browser]'")
pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install 'vramplan[browser]'")

from site_of_tests import ADDRESSES, tiny_gguf
from test_browser import CHROMIUM, Tab, agrees, axe, browser, settled

from vramplan.catalog.gpus import all_gpus
from vramplan.estimate import estimate
from vramplan.web import site as exported

__all__ = ["browser"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
    pytest.mark.skipif("PYODIDE" not in os.environ, reason="PYODIDE does not name the folder of the npm package"),
]
MADE = 3
"""Cards whose pages are files here; the others' are answered."""
LOADED = 120_000
"""Milliseconds that Python may take to load on a busy machine."""


class Files(SimpleHTTPRequestHandler):
    """A host of files that has 404.html for what is none, as GitHub's and others' have."""

    def log_message(self, *given: Any) -> None: ...

    def send_error(self, code: int, *given: Any) -> None:
        if code != 404:
            return super().send_error(code, *given)
        data = next(Path(self.directory).rglob("404.html")).read_bytes()
        self.send_response(404)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(scope="module", params=["/", "/below/here/"])
def copy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a copy, at the root of its host and below a path."""
    root, cards = tmp_path_factory.mktemp("host"), all_gpus()[:MADE]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exported, "all_gpus", lambda: cards)
        list(exported.write(root / request.param[1:], Path(os.environ["PYODIDE"]), request.param))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(root))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}{request.param}"
        server.shutdown()


def opened(tab: Tab, copy: str, href: str = "/") -> Any:
    """The page at an address of the copy, with a mark that a load would take away."""
    tab.page.set_default_timeout(LOADED)
    tab.page.goto(copy + href[1:])
    tab.page.evaluate("window.kept = true")
    return tab.page


def kept(page: Any) -> bool:
    return bool(page.evaluate("window.kept === true"))


def answered(page: Any) -> None:
    page.wait_for_selector("main:not([inert]) .verdict", timeout=LOADED)
    settled(page)
    agrees(page)


def test_a_person_asks_changes_links_and_goes_back(browser: Any, copy: str) -> None:
    with (tab := Tab(browser, copy)) as _:
        page = opened(tab, copy)
        page.click(".answer .links a >> nth=0")
        answered(page)
        page.fill("#f-gpu", "rtx-4090")
        page.press("#f-gpu", "Enter")
        page.wait_for_url("**gpu=rtx-4090**")
        answered(page)
        page.wait_for_selector(".search-part a[href*='gpu=']")
        before = page.url
        page.click("button[value=qlora]")
        page.wait_for_url("**method=qlora**")
        answered(page)
        assert "=&" not in page.url
        assert page.evaluate("document.activeElement.id") == "main"
        link, parts = page.url, page.inner_text("#answer .parts")
        page.go_back()
        page.wait_for_url(before)
        page.wait_for_selector("button[value=infer][aria-pressed=true]")
        answered(page)
        page.go_forward()
        page.wait_for_url(link)
        page.wait_for_selector("button[value=qlora][aria-pressed=true]")
        assert page.inner_text("#answer .parts") == parts
        assert kept(page)
    with (tab := Tab(browser, copy)) as _:
        page = opened(tab, copy, "/?" + link.partition("?")[2])
        answered(page)
        assert page.inner_text("#answer .parts") == parts
        assert "qlora" in page.title().lower()


def test_files_are_read_here(browser: Any, copy: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 100, "n_positions": 64}))
    with (tab := Tab(browser, copy)) as _:
        for path in (config, tiny_gguf(tmp_path / "tiny-F16.gguf")):
            page = opened(tab, copy)
            page.click("details.own summary")
            page.set_input_files("#file", path)
            page.wait_for_url("**model=**")
            answered(page)
            assert kept(page)


def test_pages_that_are_files_and_pages_that_are_not(browser: Any, copy: str) -> None:
    card = all_gpus()[MADE + 1]
    with (tab := Tab(browser, copy)) as _:
        page = opened(tab, copy, "/how/")
        assert page.inner_text("h1")
        page.click("nav >> text=Cards")
        page.wait_for_selector("h1:text-is('Cards')")
        assert page.locator(".loading progress").count() == 0
        page.fill("#q", card.name)
        page.click("button:text-is('Find')")
        page.click(f"tbody a:text-is('{card.name}')")
        page.wait_for_selector(f"h1:text-is('{card.name}')")
        page.click("nav >> text=Models")
        page.click("tbody th a >> nth=0")
        page.wait_for_selector("#every")
        model = page.inner_text("h1")
        assert kept(page)
        page.goto(page.url)
        page.wait_for_selector("#every")
        assert page.inner_text("h1") == model
        page.goto(copy + "none")
        page.wait_for_selector("text=no page '/none' here")


def test_a_slider_moves_and_searches_follow(browser: Any, copy: str) -> None:
    with (tab := Tab(browser, copy)) as _:
        page = opened(tab, copy, ADDRESSES[1])
        answered(page)
        before = page.inner_text("#answer .total")
        page.focus("input.slider[data-for=f-sequence_length]")
        for _ in range(4):
            page.keyboard.press("ArrowRight")
        page.wait_for_url("**sequence_length=**")
        answered(page)
        assert page.inner_text("#answer .total") != before
        page.wait_for_selector("#h-offers")
        remedy = page.locator(".steps li a").first
        there = remedy.evaluate("link => link.href")
        remedy.click()
        page.wait_for_url(there)
        answered(page)
        assert kept(page)


def test_without_the_navigation_api_pages_are_loaded(browser: Any, copy: str) -> None:
    with (tab := Tab(browser, copy)) as _:
        tab.page.add_init_script("Object.defineProperty(window, 'navigation', { value: undefined })")
        page = opened(tab, copy)
        page.click(".answer .links a >> nth=0")
        answered(page)
        assert not kept(page)
        page.click("button[value=lora]")
        page.wait_for_url("**method=lora**")
        answered(page)


@pytest.mark.parametrize("file", ["pyodide.mjs", "pyodide.asm.wasm", "packages-*.zip"])
def test_it_says_that_python_is_not_there(browser: Any, copy: str, file: str) -> None:
    with (tab := Tab(browser, copy)) as _:
        tab.context.route(f"**/python/{file}", lambda route: route.fulfill(status=404))
        page = opened(tab, copy, ADDRESSES[0])
        page.wait_for_selector(".loading:has-text('Python was not loaded')")
        page.wait_for_selector("main:has-text('Python was not loaded')")
        page.click("nav >> text=Cards")
        page.wait_for_selector("h1:text-is('Cards')")
        tab.wrong.clear()


def test_data_are_the_estimate(browser: Any, copy: str) -> None:
    with (tab := Tab(browser, copy)) as _:
        page = opened(tab, copy, ADDRESSES[0])
        answered(page)
        page.click("text=The same as JSON")
        page.wait_for_selector("main pre")
        here = estimate("meta-llama/Llama-3.1-8B", gpu="rtx-4090", context_length=8192)
        assert json.loads(page.inner_text("main pre")) == json.loads(json.dumps(here.to_dict()))


def test_without_script_it_can_be_read(browser: Any, copy: str) -> None:
    with (tab := Tab(browser, copy, script=False)) as _:
        page = tab.page
        page.goto(copy)
        assert "no server" in page.inner_text("noscript")
        page.click("nav >> text=Cards")
        page.click(f"tbody a[href$='/{all_gpus()[0].id}']")
        assert page.locator("tbody tr").count() > 10


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(browser: Any, copy: str, theme: str) -> None:
    options = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}
    with (tab := Tab(browser, copy, "phone", theme)) as _:
        page = opened(tab, copy, ADDRESSES[0])
        found = axe.Axe().run(page, options=options).response["violations"]
        answered(page)
        found += axe.Axe().run(page, options=options).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []
