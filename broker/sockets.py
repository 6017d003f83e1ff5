"""What a network thread needs of sockets beside paho: to be woken, and to part in peace."""

from __future__ import annotations

import contextlib
import socket
import time


class Wakeup:
    """A pair of sockets: the waiting thread watches one end, others write to the other."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._read.setblocking(False)
        self._write.setblocking(False)

    def fileno(self) -> int:
        """The end to watch, so that a selector takes this object."""
        return self._read.fileno()

    def set(self) -> None:
        """Wake the thread, from any thread."""
        # Full: it will wake up anyway. Closed: there is nobody to wake.
        with contextlib.suppress(OSError):
            self._write.send(b"\0")

    def clear(self) -> None:
        """Take what woke the thread, so that the selector can wait again."""
        with contextlib.suppress(BlockingIOError):
            self._read.recv(4096)

    def close(self) -> None:
        """Close both ends."""
        self._read.close()
        self._write.close()


def part(connection: socket.socket, timeout_seconds: float) -> None:
    """Say that nothing more will be sent, read until the other side ends too, and close.

    A socket that is closed with unread data in it resets the connection, and with that the
    last words are lost that the other side has not read yet (RFC 1122, 4.2.2.13):
    here a DISCONNECT, so that the broker would publish the last will.
    """
    deadline = time.monotonic() + timeout_seconds
    with connection, contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        while (left := deadline - time.monotonic()) > 0:
            connection.settimeout(left)
            if not connection.recv(1 << 16):
                break
