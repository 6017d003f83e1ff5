"""Wakes a thread that waits in a selector."""

from __future__ import annotations

import contextlib
import socket


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
