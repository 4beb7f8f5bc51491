"""Listening: uvicorn with bounds, in one process or several."""

from __future__ import annotations

import socket

import uvicorn
from uvicorn.supervisors import Multiprocess

from ..errors import BadInput


class Config(uvicorn.Config):
    """uvicorn's, whose socket for several processes sends at once, as the one of a single process does.

    asyncio does that for sockets that are said to be of TCP only; else every answer waits 40 ms for the asker's acknowledgement.
    """

    def bind_socket(self) -> socket.socket:
        """The listening socket, from which connections take the option over."""
        made = super().bind_socket()
        if made.family in (socket.AF_INET, socket.AF_INET6):
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made


def listen(host: str, port: int, *, workers: int, hub: bool) -> None:
    """Serve the site until it is stopped. Raises BadInput for an address that cannot be listened at."""
    config = Config(
        "vramplan.web.server:with_hub" if hub else "vramplan.web.server:application",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        http="h11",
        access_log=False,
        server_header=False,
        limit_concurrency=1000,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=65_536,
    )
    if workers > 1:
        Multiprocess(config, sockets=[config.bind_socket()]).run()
        return
    server = uvicorn.Server(config)
    server.run()
    if not server.started:
        raise BadInput(f"serve: cannot listen at {host}, port {port}")
