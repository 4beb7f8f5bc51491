"""Options made of the scenario's own fields, and the scenarios that a command line means: one for each combination of repeated values."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import click

from ..errors import BadFile, BadInput
from ..scenario import FLAGS, Scenario, keys, scenario

REPEATED = ("gpu", "weights", "context_length", "kv_dtype")
"""Keys that may be given several times: every combination becomes a row of a table."""
SHORT = {"context_length": ("--context",), "sequences": ("--batch", "--users")}
"""Other names for some options."""
BY_HAND = {
    "layers": "num_hidden_layers",
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn": "intermediate_size",
    "vocab": "vocab_size",
}
"""A plain decoder described by hand: option -> key of a Llama config."""
NEEDED = ("layers", "hidden", "heads", "ffn", "vocab")
"""Of those, the ones that have no default."""

Command = Callable[..., Any]


def scenario_options(command: Command) -> Command:
    """Give `command` an option for every key of a scenario, `--scenario`, and the options of a model described by hand."""
    for name in reversed(BY_HAND):
        command = click.option(f"--{name.replace('_', '-')}", f"hand_{name}", help=f"a plain decoder by hand: {BY_HAND[name]}")(command)
    for name, about in reversed(list(keys().items())):
        flags = (f"--{name.replace('_', '-')}", *SHORT.get(name, ()))
        if name in FLAGS:
            both = f"{flags[0]}/--no-{flags[0][2:]}"
            command = click.option(both, name, default=None, help=about["help"])(command)
        else:
            again = name in REPEATED
            text = about["help"] + (" (repeatable)" if again else "")
            command = click.option(*flags, name, multiple=again, help=text, metavar=about.get("metavar"))(command)
    text = "a scenario as a JSON file, or - for standard input; options given beside it win"
    command = click.option("--scenario", "scenario_file", metavar="FILE", help=text)(command)
    return click.argument("model", required=False)(command)


def scenarios(options: Mapping[str, Any]) -> list[Scenario]:
    """The scenarios that the options mean. Raises BadInput as `scenario()`, and for a model that is given twice or not at all."""
    given: dict[str, Any] = {}
    if options["scenario_file"] is not None:
        given |= _read(options["scenario_file"])
    hand = {key: _whole(name, options[f"hand_{name}"]) for name, key in BY_HAND.items() if options.get(f"hand_{name}") is not None}
    if hand:
        if options["model"]:
            raise BadInput("a model is either named or described by hand with --layers, --hidden …, not both")
        if missing := [f"--{name}" for name in NEEDED if BY_HAND[name] not in hand]:
            raise BadInput(f"a model described by hand also needs {', '.join(missing)}")
        given["model"] = {"model_type": "llama", **hand}
    elif options["model"]:
        given["model"] = options["model"]
    given |= {name: options[name] for name in keys() if name in options and options[name] not in (None, ())}
    lists = {name: given.pop(name) for name in REPEATED if isinstance(given.get(name), tuple)}
    return [scenario({**given, **dict(zip(lists, values, strict=True))}) for values in product(*lists.values())]


def single(options: Mapping[str, Any]) -> Scenario:
    """The one scenario that the options mean. Raises BadInput where they mean several."""
    found = scenarios(options)
    if len(found) > 1:
        names = [f"--{key.replace('_', '-')}" for key in REPEATED if len(options.get(key) or ()) > 1]
        raise BadInput(f"give {' and '.join(names)} once: several are for estimate and compare")
    return found[0]


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 12):
        raise BadInput(f"--{name.replace('_', '-')} {text[:40]!r}: must be a whole number")
    return int(text)


def _read(name: str) -> dict[str, Any]:
    from pathlib import Path

    from ..sources.local import MAX_CONFIG, parse_config, read_config

    if name != "-":
        return read_config(Path(name))
    data = sys.stdin.buffer.read(MAX_CONFIG + 1)
    if len(data) > MAX_CONFIG:
        raise BadFile(f"standard input: a scenario has at most {MAX_CONFIG:,} bytes")
    return parse_config(data, "standard input")
