"""The HTTP server: one listening socket, uvicorn on it, and a stop that does not wait long."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
from starlette.types import ASGIApp

_BACKLOG: Final = 1024
# Streams end by themselves when the gateway stops; what does not is cut off.
_GRACE_SECONDS: Final = 1
# Longer than the pools of usual clients keep an idle connection: a request on one that the
# server is just closing would fail.
_KEEP_ALIVE_SECONDS: Final = 75


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; OSError when the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named: asyncio sets TCP_NODELAY only on sockets that say they are
    # TCP, and a stream of small events needs it.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


class HttpServer(uvicorn.Server):
    """Uvicorn without its signal handlers: the process decides when to stop.

    Args:
        app: The application.
        debug: Also log each request; addresses of weights are credentials.
    """

    def __init__(self, app: ASGIApp, *, debug: bool = False) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="debug" if debug else "warning",
                access_log=debug,
                lifespan="off",
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the process."""
        yield
