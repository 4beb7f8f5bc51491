"""`vramplan trace` without its extra: one line that says what to install."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from vramplan.cli import vramplan
from vramplan.errors import BadInput


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name == "vramplan.trace.step" or name.partition(".")[0] == "torch"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = CliRunner().invoke(vramplan, ["trace", "openai-community/gpt2"], standalone_mode=False)
    assert isinstance(result.exception, BadInput)
    assert "pip install 'vramplan[trace]'" in str(result.exception)
