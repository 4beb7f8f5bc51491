"""The page as a person uses it, in Debian's Chromium: with and without JavaScript, on a phone and a wide screen, in both themes, and axe.

Needs: pip install 'vramplan[browser]' and a Chromium; skipped without. The server is a process of its own.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from site_of_tests import ADDRESSES, tiny_gguf

from vramplan.estimate import estimate
from vramplan.scenario import scenario
from vramplan.units import gib
from vramplan.web.address import given, pairs
from vramplan.web.documents import names
from vramplan.web.pages import MENU

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'vramplan[browser]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install 'vramplan[browser]'")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")]

QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
SIZES = {"phone": {"width": 375, "height": 800}, "wide": {"width": 1360, "height": 900}}
PAGES = [
    *(href for href, _ in MENU), *ADDRESSES[:4], ADDRESSES[1] + "&show=more", ADDRESSES[1] + "&show=cards",
    "/cards/rtx-4090", "/models/openai-community/gpt2",
    "/?model=none",
    "/compare?s=model%3Dgpt2%26gpu%3Drtx-4090&s=model%3Dgpt2%26task%3Dtrain", f"/how/{names()[1]}",
]  # fmt: skip


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from vramplan.cli import main; main()", "serve", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        server.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as made:
        started = made.chromium.launch(executable_path=CHROMIUM, args=QUIET.split())
        yield started
        started.close()


class Tab:
    """A page in a context of its own, that notes what went wrong and which hosts were asked."""

    def __init__(self, browser: Any, site: str, size: str = "wide", theme: str = "light", script: bool = True) -> None:
        self.context = browser.new_context(viewport=SIZES[size], color_scheme=theme, java_script_enabled=script, base_url=site)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda said: self.wrong.append(said.text) if said.type == "error" and "404" not in said.text else None)
        self.page.on("request", lambda asked: None if asked.url.startswith((site, "blob:", "data:")) else self.wrong.append(asked.url))

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *left: object) -> None:
        self.context.close()
        if left[0] is None:
            assert self.wrong == []


def settled(page: Any) -> None:
    """Wait until the answer is the one that was asked for last."""
    page.wait_for_timeout(300)
    page.wait_for_selector("#answer:not(.waiting)")


def agrees(page: Any) -> None:
    """The page shows the peak of the estimate that its address asks for."""
    answer = estimate(scenario(given(pairs(page.url.partition("?")[2]))[0]))
    assert gib(answer.peak[1]) in page.inner_text("#answer .total")
    assert page.inner_text(".verdict .word").startswith({True: "Fits", False: "Does not fit", None: "Takes"}[answer.fits])


@pytest.mark.parametrize("size", SIZES)
def test_search_pick_and_move_a_slider(browser: Any, site: str, size: str) -> None:
    with Tab(browser, site, size) as page:
        page.goto("/")
        page.fill("#model", "")
        page.type("#model", "llama 3.1 8b")
        page.wait_for_selector("#models option[value='meta-llama/Llama-3.1-8B']", state="attached", timeout=5000)
        page.fill("#model", "meta-llama/Llama-3.1-8B")
        page.fill("#f-gpu", "rtx-4090")
        page.press("#f-gpu", "Enter")
        settled(page)
        agrees(page)
        before = page.inner_text("#answer .total")
        slider = page.locator("input.slider[data-for=f-context_length]")
        slider.focus()
        for _ in range(6):
            page.keyboard.press("ArrowLeft")
        settled(page)
        agrees(page)
        assert "context_length=" in page.url
        assert page.inner_text("#answer .total") != before
        said = page.inner_text("#said")
        assert said
        assert said in page.inner_text("#answer")


@pytest.mark.parametrize("script", [True, False], ids=["script", "no-script"])
@pytest.mark.parametrize("size", SIZES)
def test_a_form_a_task_a_formula_and_a_remedy(browser: Any, site: str, size: str, script: bool) -> None:
    with Tab(browser, site, size, script=script) as page:
        page.goto("/")
        page.fill("#model", "meta-llama/Llama-3.1-8B")
        page.fill("#f-gpu", "rtx-4090")
        page.click("button[value=qlora]")
        page.wait_for_url("**method=qlora**")
        assert "=&" not in page.url
        agrees(page)
        part = page.locator(".parts details").first
        part.locator("summary").click()
        assert "B" in part.locator("code").first.inner_text()
        if not script:
            page.click(".search-part a >> nth=0")
        page.wait_for_selector(".steps li a")
        page.locator(".steps li a").first.click()
        page.wait_for_url("**checkpointing=full**")
        agrees(page)
        assert page.inner_text(".verdict .word").startswith("Fits")
        page.go_back()
        assert "checkpointing" not in page.url
        page.reload()
        agrees(page)


def test_a_copied_link_opens_the_same_page_afresh(browser: Any, site: str) -> None:
    with Tab(browser, site) as page:
        page.goto(ADDRESSES[1])
        page.click("details.group:has-text('Kernels') summary")
        page.select_option("#f-attention", "eager")
        settled(page)
        link, shown = page.url, page.inner_text("#answer .parts")
        page.click(".copy >> nth=0")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("vramplan estimate")
        assert "--attention eager" in copied
    with Tab(browser, site) as page:
        page.goto(link)
        assert page.inner_text("#answer .parts") == shown
        assert page.input_value("#f-attention") == "eager"


def test_a_dropped_gguf_sends_only_its_header(browser: Any, site: str, tmp_path: Path) -> None:
    path = tiny_gguf(tmp_path / "tiny-F16.gguf")
    sent: list[bytes] = []
    with Tab(browser, site) as page:
        page.on("request", lambda asked: sent.append(asked.post_data_buffer or b"") if "/inspect" in asked.url else None)
        page.goto("/")
        page.click("details.own summary")
        page.set_input_files("#file", path)
        page.wait_for_url("**model=**")
        agrees(page)
    assert len(sent) == 1
    assert len(sent[0]) < path.stat().st_size / 20
    assert b"token 7" not in sent[0]
    assert b"blk.1.ffn_down.weight" in sent[0]


def test_a_pasted_config_works_without_script(browser: Any, site: str) -> None:
    config = '{"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 100, "n_positions": 64}'
    with Tab(browser, site, script=False) as page:
        page.goto("/")
        page.click("details.own summary")
        page.fill("#config", config)
        page.click("button.primary")
        agrees(page)


def test_comparing(browser: Any, site: str) -> None:
    with Tab(browser, site) as page:
        page.goto(ADDRESSES[0])
        page.click("text=Compare with others")
        page.fill("#s", page.input_value("#s").replace("8192", "16384"))
        page.click("button:text-is('Add')")
        assert page.locator(".compare thead th").count() == 3
        page.click("text=Remove >> nth=0")
        assert page.locator(".compare thead th").count() == 2


def test_the_theme_is_kept(browser: Any, site: str) -> None:
    with Tab(browser, site) as page:
        page.goto("/")
        page.click("#theme")
        page.goto("/cards")
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert page.evaluate("document.cookie") == ""


def test_the_keyboard_reaches_the_answer(browser: Any, site: str) -> None:
    with Tab(browser, site) as page:
        page.goto(ADDRESSES[0])
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        page.focus(".parts summary")
        page.keyboard.press("Enter")
        assert page.locator(".parts details[open]").count() == 1


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_axe_finds_nothing_and_nothing_runs_over(browser: Any, site: str, size: str, theme: str) -> None:
    checker = axe.Axe()
    found: dict[str, list[str]] = {}
    options = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}
    with Tab(browser, site, size, theme) as page:
        for href in PAGES:
            page.goto(href)
            page.wait_for_load_state("networkidle")
            page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
            violations = checker.run(page, options=options).response["violations"]
            wrong = [f"{one['id']}: {node['html'][:120]} {node['failureSummary'][:160]}" for one in violations for node in one["nodes"][:2]]
            width = page.evaluate("document.documentElement.scrollWidth")
            if width > SIZES[size]["width"]:
                wrong.append(f"{width} px wide")
            if wrong:
                found[href] = wrong
    assert not found, "\n".join(f"{href}\n  " + "\n  ".join(wrong) for href, wrong in found.items())


def test_no_page_needs_more_than_it_may(site: str) -> None:
    """Under 150 kB over the wire, with its style and script."""
    for href in ("/", *ADDRESSES):
        total, seen = 0, [href]
        with urllib.request.urlopen(urllib.request.Request(site + href, headers={"accept-encoding": "gzip"})) as page:
            total += len(page.read())
        with urllib.request.urlopen(site + href) as page:
            seen += re.findall(r'(?:href|src)="(/static/[^"]+)"', page.read().decode())
        for asset in seen[1:]:
            with urllib.request.urlopen(urllib.request.Request(site + asset, headers={"accept-encoding": "gzip"})) as file:
                total += len(file.read())
        assert total < 150_000, (href, total)
