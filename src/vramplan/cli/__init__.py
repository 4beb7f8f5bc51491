"""The command line: one file per verb, imported when it is called, so that an answer costs no more than its own imports.

Exit status: 0 answered, 1 with `--check` and it does not fit, 2 the input is wrong (one line on stderr).
"""

from __future__ import annotations

import gc
import sys
from importlib import import_module

import click

from ..discovery import modules
from ..errors import VramplanError, nearest

HELPERS = ("options", "progress")
"""Modules here that are no verbs."""


class Verbs(click.Group):
    """A group whose commands are the modules beside this one, each with a click command called `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name.replace("_", "-") for name in modules(__file__) if name not in HELPERS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.list_commands(ctx):
            raise click.UsageError(f"no such command {name!r}{nearest(name, self.list_commands(ctx))}")
        command: click.Command = import_module(f".{name.replace('-', '_')}", __name__).command
        return command


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="vramplan")
def vramplan() -> None:
    """How much GPU memory an LLM workload takes, before anything is loaded or rented."""


def main() -> None:
    """Run the command line; wrong input is one line on stderr and exit status 2."""
    try:
        status = vramplan.main(prog_name="vramplan", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        status = 2
    except (click.ClickException, VramplanError) as error:
        text = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"vramplan: {' '.join(text.split())}", err=True)
        status = 2
    except (click.Abort, KeyboardInterrupt):
        status = 130
    except SystemExit:  # click's answer to a pipe that is closed, as `| head` closes it
        status = 0
    gc.freeze()  # leaving searches for garbage otherwise: 6 of 78 ms
    sys.exit(status if isinstance(status, int) else 0)
