"""The pages: every key, engine, command and option is in them; their Python runs; their commands are answered."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from harness import Run
from vramplan.cli import vramplan as group
from vramplan.engines import engine, engine_names
from vramplan.scenario import keys

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_key_of_a_scenario_is_documented() -> None:
    text = page("docs/scenario.md")
    for key, about in {"model": {"help": ""}, **keys()}.items():
        assert f"| `{key}` | {about['help']}" in text, key


def test_every_engine_is_documented() -> None:
    text = page("docs/engines.md")
    for name in engine_names():
        assert f"\n## {name} ({engine(name).VERSION})\n" in text, name


def test_every_command_and_option_is_documented() -> None:
    text = page("docs/cli.md")
    context = click.Context(group)
    for name in group.list_commands(context):
        assert f"\n## vramplan {name}\n" in text, name
        section = text.partition(f"\n## vramplan {name}\n")[2].partition("\n## ")[0]
        command = group.get_command(context, name)
        assert command is not None
        for parameter in command.params:
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert any(flag in section for flag in parameter.opts), (name, parameter.opts)


BLOCKS = [
    pytest.param(block, id=f"{path.name}-{number}")
    for path in (ROOT / "README.md", ROOT / "docs" / "quickstart.md")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_python_in_the_pages_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, "page", "exec"), {})
    assert capsys.readouterr().out.strip()


def commands() -> list[str]:
    """Every command line of README and the quickstart that needs neither a file nor the network."""
    lines = [
        line for path in (ROOT / "README.md", ROOT / "docs" / "quickstart.md") for line in path.read_text(encoding="utf-8").splitlines()
    ]
    found = [
        line.rpartition("&& ")[2].partition(" #")[0].strip()
        for line in lines
        if line.startswith(("vramplan ", "pip install . && vramplan "))
    ]
    return [line for line in dict.fromkeys(found) if not re.search(r"\./|config\.json|org/new-model", line)]


def test_commands_are_found() -> None:
    assert len(commands()) >= 8


@pytest.mark.parametrize("line", commands())
def test_commands_in_the_pages_are_answered(line: str, run: Run) -> None:
    done = run(*shlex.split(line)[1:])
    assert done.status == (1 if "--check" in line.split() and "Does not fit" in done.out else 0), done.err
    assert done.out


def test_links_between_pages_lead_somewhere() -> None:
    for path in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
