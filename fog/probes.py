"""Whether a server answers now: one short conversation each, and never an exception."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from fog.processes import Probe

TIMEOUT_SECONDS: Final = 2.0


def tcp_probe(host: str, port: int) -> Probe:
    """Return a probe that is true when somebody accepts connections."""
    return _conversation(host, port, b"", 0, lambda answer: True)


def redis_probe(host: str, port: int, password: str) -> Probe:
    """Return a probe that is true when Redis takes the password and answers PING."""
    # Accepting connections is not enough: it does that while it still loads its journal.
    request = f"AUTH {password}\r\nPING\r\n".encode()
    expected = b"+OK\r\n+PONG"
    return _conversation(host, port, request, len(expected), lambda answer: answer == expected)


def http_probe(host: str, port: int, path: str) -> Probe:
    """Return a probe that is true when ``GET path`` answers 200."""
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    return _conversation(host, port, request, len("HTTP/1.1 200"), lambda a: a.endswith(b" 200"))


def _conversation(
    host: str, port: int, request: bytes, num_bytes: int, accepts: Callable[[bytes], bool]
) -> Probe:
    async def probe() -> bool:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    writer.write(request)
                    return accepts(await reader.readexactly(num_bytes))
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return False

    return probe
