"""`vramplan export-site`: the web page as files, which answer in the browser."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ..errors import BadInput


@click.command("export-site")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--pyodide",
    type=click.Path(path_type=Path),
    default="node_modules/pyodide",
    show_default=True,
    help="folder of the npm package pyodide: Python for the browser",
)
@click.option("--base", default="/", show_default=True, help="path at which the copy will stand on its host, such as /vramplan/")
def command(folder: Path, pyodide: Path, base: str) -> None:
    """Write a static copy of the web page into DIR, for any host of files: it answers in the browser, with no server.

    An earlier copy in DIR is replaced. Needs: pip install 'vramplan[web]', and npm install pyodide.
    """
    try:
        from ..web.site import write

        written = write(folder, pyodide, base)
    except ImportError as error:
        raise BadInput(f"vramplan export-site needs {error.name}, which is not installed: pip install 'vramplan[web]'") from None
    with click.progressbar(written, label="writing pages", file=sys.stderr) as names:
        count = sum(1 for _ in names)
    click.echo(f"{count} files in {folder}; try it: python -m http.server --directory {folder}")
