"""What all tests share: the command line in this process, golden files, and no network."""

from __future__ import annotations

import io
import sys

import pytest

from harness import GOLDEN, Done, Golden, Run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew from what is printed now; review the diff")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Hub, whether its client is imported already or will be."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if "huggingface_hub.constants" in sys.modules:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def run(offline: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("estimate", "gpt2", …)`: the command line as its entry point calls it, offline, with `stdin` as its input."""
    from vramplan.cli import main

    monkeypatch.setenv("COLUMNS", "80")

    def call(*words: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["vramplan", *words])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return Done(int(left.value.code or 0), out, err)

    return call


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """`golden(name, text)`: `text` equals the file tests/golden/`name`, to the last character."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"tests/golden/{name} does not exist: pytest --update-golden writes it"
        assert text == path.read_text(encoding="utf-8"), f"{name} changed: if that is right, pytest --update-golden"

    return compare
