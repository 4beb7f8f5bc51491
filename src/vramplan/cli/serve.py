"""`vramplan serve`: the web page and the HTTP API."""

from __future__ import annotations

import click

from ..errors import BadInput

EXTRA = ("starlette", "uvicorn", "jinja2", "markdown_it")


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen at; 0.0.0.0 for all of this machine's")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="port; 0 for a free one")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="processes that answer")
@click.option("--hub", is_flag=True, help="let visitors name models of the Hugging Face Hub, which is asked for their configs and headers")
def command(host: str, port: int, workers: int, hub: bool) -> None:
    """Serve the web page and the HTTP API, at http://127.0.0.1:8000 by default.

    The address of a page holds every choice; /api/v1/openapi.json describes the API. Needs: pip install 'vramplan[web]'.
    """
    try:
        import jinja2  # noqa: F401
        import markdown_it  # noqa: F401

        from ..web.listen import listen
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise BadInput(f"vramplan serve needs {error.name}, which is not installed: pip install 'vramplan[web]'") from None
    listen(host, port, workers=workers, hub=hub)
