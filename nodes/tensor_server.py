"""Hands tensors on to other nodes: one range of one tensor per request, over HTTP.

In threads of its own, which only copy from a file to a socket in the kernel. Who may have what
is decided by `nodes.shelf`.
"""

from __future__ import annotations

import logging
import re
import socket
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from nodes.shelf import Shelf

logger = logging.getLogger(__name__)

_RANGE: Final = re.compile(r"bytes=(\d{1,18})-(\d{1,18})")
_MAX_TRANSFERS: Final = 8
_SILENCE_SECONDS: Final = 10.0
_BUSY: Final = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 5\r\n\r\n"


class TensorServer:
    """Serves a shelf until it is stopped.

    Args:
        host: Address to listen on.
        port: 0: a free one.

    Raises:
        OSError: The port cannot be used.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server = _Server((host, port), _Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="tensor-server",
            daemon=True,
        )

    @property
    def port(self) -> int:
        """The port that it listens on."""
        port: int = self._server.server_address[1]
        return port

    def start(self, shelf: Shelf) -> None:
        """Begin to answer."""
        self._server.shelf = shelf
        self._thread.start()

    def stop(self) -> None:
        """End; what is being sent breaks off."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def reachable_url(host: str, port: int, peer: tuple[str, int]) -> str:
    """Return the URL of a server on this device, for others.

    Args:
        host: That it listens on; where that is all addresses, the one by which this device
            reaches ``peer`` stands for them.
        port: That it listens on.
        peer: Whom the others reach as well, such as the broker.
    """
    if host in ("0.0.0.0", "::"):
        with suppress(OSError):
            found = socket.getaddrinfo(*peer, type=socket.SOCK_DGRAM)[0]
            with socket.socket(found[0], socket.SOCK_DGRAM) as probe:
                probe.connect(found[4])  # sends nothing, but chooses the way
                host = str(probe.getsockname()[0])
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Threads are not kept to be joined: a transfer may take long.
    block_on_close = False
    shelf: Shelf | None = None

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._places = threading.BoundedSemaphore(_MAX_TRANSFERS)
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            with suppress(OSError):
                request.sendall(_BUSY)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Who asked has gone, or is silent: it asks again, or somebody else.
        logger.debug("a transfer to %s broke off: %s", client_address, sys.exception())


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _SILENCE_SECONDS

    def do_GET(self) -> None:
        shelf = self.server.shelf
        place = None if shelf is None else shelf.find(self.path)
        if place is None:
            # One answer for what is not here and for what is not signed.
            self.send_error(404)
            return
        found = _RANGE.fullmatch(self.headers.get("Range", ""))
        start, end = (int(found[1]), int(found[2]) + 1) if found else (0, 0)
        if not start < end <= place.num_bytes:
            self.send_error(416)
            return
        try:
            file = place.path.open("rb")
        except OSError:
            self.send_error(404)  # left out of the cache since it was announced
            return
        with file:
            self.send_response(206)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{place.num_bytes}")
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            self.connection.sendfile(file, place.offset + start, end - start)

    def log_message(self, format: str, *args: Any) -> None:
        # The path of a request has its signature in it.
        logger.debug("%s: %s", self.client_address[0], args[1] if len(args) > 1 else format)
