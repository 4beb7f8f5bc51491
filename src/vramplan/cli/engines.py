"""`vramplan engines`: the programs that are described, what each covers, and how well it agrees with what others measured."""

from __future__ import annotations

import json
from textwrap import wrap
from typing import Any

import click


@click.command("engines")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="the same as JSON")
def command(name: str | None, as_json: bool) -> None:
    """List the engines, what each covers, and its errors over the measurements of others, or only the one called NAME."""
    from ..scenario import ENGINE_ALIASES

    asked = ENGINE_ALIASES.get(name, name) if name else None
    found = [about for about in _described() if asked in (None, about["engine"])]
    if not found:
        from ..engines import engine

        engine(str(asked))
    click.echo(json.dumps(found, indent=1, ensure_ascii=False) if as_json else "\n\n".join(_text(about) for about in found))


def _described() -> list[dict[str, Any]]:
    from importlib.resources import files

    from ..engines import engine, engine_names
    from ..engines.train import framework, framework_names

    measured = json.loads((files("vramplan.catalog") / "accuracy.json").read_text())
    tasks = (("infer", engine_names(), engine), ("train", framework_names(), framework))
    return [
        {
            "engine": name,
            "task": task,
            "version": get(name).VERSION,
            "covers": get(name).ABOUT,
            "measured": measured.get(task, {}).get(name, {}),
        }
        for task, names, get in tasks
        for name in names
    ]


def _text(about: dict[str, Any]) -> str:
    """A paragraph: the name, what is covered, and a line of errors for each quantity that somebody measured."""
    head = f"{about['engine']} ({about['version']}), {'inference' if about['task'] == 'infer' else 'training'}"
    lines = [head, *wrap(about["covers"], 78, initial_indent="  ", subsequent_indent="  ")]
    lines += [f"  {quantity}: {_errors(summary)}" for quantity, summary in about["measured"].items()]
    return "\n".join(lines if about["measured"] else [*lines, "  no measurement of others is carried: from its source and its own tests"])


def _errors(summary: dict[str, Any]) -> str:
    refused = f", {summary['refused']} refused" if summary["refused"] else ""
    if summary["median_abs"] is None:
        return f"{summary['n']} measured{refused}"
    middle, most, signed = (f"{100 * summary[key]:.1f}" for key in ("median_abs", "p90_abs", "median_signed"))
    under = f", {summary['under']} more than 5 % under" if summary["under"] else ""
    return f"{summary['n']} measured{refused}: median {middle} % off ({float(signed):+.1f} %), 90 % within {most} %{under}"
