"""Log files of the children: one file each, the last lines for error reports."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

MAX_LOG_BYTES: Final = 16 * 1024**2
"""A file that grows beyond this is renamed to ``.log.1``; the one before is dropped."""

LineSink = Callable[[str, str], None]
"""Called with the name of the process and one line without its end."""


class ProcessLog:
    """The log of one process, over all its restarts."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.path = folder / f"{name}.log"
        folder.mkdir(parents=True, exist_ok=True)
        self._rotate_away()
        self._file: IO[bytes] = self.path.open("ab", buffering=0)
        self._num_bytes = 0

    def write(self, data: bytes) -> None:
        """Append, and begin a new file when this one is full."""
        self._file.write(data)
        self._num_bytes += len(data)
        if self._num_bytes > MAX_LOG_BYTES:
            self._file.close()
            self._rotate_away()
            self._file = self.path.open("ab", buffering=0)
            self._num_bytes = 0

    def note(self, text: str) -> None:
        """Append a line of the supervisor's own."""
        self.write(f"--- {text}\n".encode())

    def tail(self, num_lines: int = 12) -> list[str]:
        """Return the last lines, without those of the supervisor."""
        with self.path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 64 * 1024))
            lines = file.read().decode(errors="replace").splitlines()
        return [line for line in lines if not line.startswith("--- ")][-num_lines:]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rotate_away(self) -> None:
        if self.path.exists():
            self.path.replace(self.path.with_suffix(".log.1"))


async def pump(stream: asyncio.StreamReader, log: ProcessLog, sink: LineSink | None) -> None:
    """Copy a child's output into its log, and line by line to ``sink``, until it ends.

    Reads blocks rather than lines: a child that never ends its line must not stop here.
    """
    rest = b""
    while block := await stream.read(64 * 1024):
        log.write(block)
        if sink is None:
            continue
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            sink(log.name, line.decode(errors="replace").rstrip("\r"))
        if len(rest) > 64 * 1024:
            sink(log.name, rest.decode(errors="replace"))
            rest = b""
    if sink is not None and rest:
        sink(log.name, rest.decode(errors="replace"))
