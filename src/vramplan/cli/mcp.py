"""`vramplan mcp`: the answers as tools of a language model."""

from __future__ import annotations

import click

from ..errors import BadInput


@click.command("mcp")
@click.option(
    "--http", is_flag=True, help="serve at http://HOST:PORT/mcp instead of on stdin and stdout; then models are those of the catalogue"
)
@click.option("--host", default="127.0.0.1", show_default=True, help="with --http: address to listen at")
@click.option("--port", default=8001, show_default=True, type=click.IntRange(0, 65535), help="with --http: port; 0 for a free one")
def command(http: bool, host: str, port: int) -> None:
    """Serve the Model Context Protocol, so that a language model can ask what this command line answers.

    In a client's settings the command is `vramplan mcp`. Needs: pip install 'vramplan[mcp]'.
    """
    try:
        from ..web import mcp_server
    except ImportError as error:
        raise BadInput(f"vramplan mcp needs {error.name}, which is not installed: pip install 'vramplan[mcp]'") from None
    if not http:
        mcp_server.stdio()
        return
    import uvicorn

    uvicorn.run(mcp_server.application(host), host=host, port=port, log_level="info", access_log=False, server_header=False)
