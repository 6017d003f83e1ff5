"""Free TCP ports on loopback, and who holds a busy one."""

from __future__ import annotations

import contextlib
import random
import socket
from typing import Final

LOOPBACK: Final = "127.0.0.1"

# Below the ranges from which kernels take outgoing ports (Linux 32768, macOS 49152 and
# upwards): a client that keeps trying a broker that restarts must not be given the
# broker's own port, and connect to itself.
_FIRST, _LAST = 20_000, 32_000


class PortBusyError(Exception):
    """The port that was asked for is taken. The message says by whom, and what to do."""


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Return whether a server could listen there now."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        # As servers do: a connection that lingers in TIME_WAIT is no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port(rng: random.Random, taken: frozenset[int] = frozenset()) -> int:
    """Return a free port that is not in ``taken``.

    Raises:
        PortBusyError: A thousand draws met none.
    """
    for _ in range(1000):
        port = rng.randrange(_FIRST, _LAST)
        if port not in taken and is_free(port):
            return port
    raise PortBusyError(f"no free port between {_FIRST} and {_LAST} on {LOOPBACK}")


def check_port(port: int) -> None:
    """Raise `PortBusyError` when nobody could listen on ``port``, which is in 1..65535."""
    if is_free(port):
        return
    if port < 1024 and holder(port) is None:
        reason = "is not free for you (ports below 1024 belong to the administrator)"
    else:
        reason = f"is taken by {holder(port) or 'another process'}"
    other = port + 1 if port < 65535 else port - 1
    raise PortBusyError(
        f"port {port} {reason}. Stop that one, or choose another: e2llm up --port {other}"
    )


def holder(port: int) -> str | None:
    """Return name and process id of who listens on ``port``, where that can be seen."""
    try:
        import psutil
    except ModuleNotFoundError:
        return None
    # Other people's processes are not shown to everybody; macOS shows none at all.
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if not connection.laddr or connection.laddr.port != port or not connection.pid:
                continue
            if connection.status == psutil.CONN_LISTEN:
                process = psutil.Process(connection.pid)
                command = " ".join(process.cmdline()[:4]) or process.name()
                return f"process {connection.pid} ({command})"
    return None
