"""Where the bytes of one tensor arrive, in order, counted and hashed on the way.

What has arrived stays when a source breaks off, so that another one goes on from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import BinaryIO, Final, Protocol

from broker.control import TensorInfo

_PIECE_BYTES: Final = 1 << 20


class Landing(Protocol):
    """Bytes of one tensor on their way in."""

    @property
    def position(self) -> int:
        """Bytes that are here, from the first one on."""

    def take(self, piece: memoryview) -> None:
        """Append bytes."""

    def is_intact(self) -> bool:
        """Whether all is here, and is what the manifest describes."""

    def restart(self) -> None:
        """Forget what came: it was not the right thing."""


class MemoryLanding:
    """Arrives in memory, as ``data``."""

    def __init__(self, info: TensorInfo) -> None:
        self.data = bytearray(info.num_bytes)
        self.position = 0
        self._checksum = info.checksum

    def take(self, piece: memoryview) -> None:
        """Append bytes."""
        self.data[self.position : self.position + len(piece)] = piece
        self.position += len(piece)

    def is_intact(self) -> bool:
        """Whether all is here, and is what the manifest describes."""
        return self.position == len(self.data) and sha256_hex(self.data) == self._checksum

    def restart(self) -> None:
        """Forget what came."""
        self.position = 0


class FileLanding:
    """Arrives in a file, after what an earlier attempt has left there.

    Args:
        file: Open for reading and appending, unbuffered.
    """

    def __init__(self, info: TensorInfo, file: BinaryIO) -> None:
        self._info, self._file = info, file
        self.position = 0
        self._digest = hashlib.sha256()
        self._read_what_is_there()

    def _read_what_is_there(self) -> None:
        self._file.seek(0)
        while piece := self._file.read(_PIECE_BYTES):
            self._digest.update(piece)
            self.position += len(piece)
        if self.position > self._info.num_bytes:
            self.restart()

    def take(self, piece: memoryview) -> None:
        """Append bytes; OSError when the disk is full."""
        written = 0
        while written < len(piece):
            written += self._file.write(piece[written:])
        self._digest.update(piece)
        self.position += len(piece)

    def is_intact(self) -> bool:
        """Whether all is here, and is what the manifest describes."""
        is_whole = self.position == self._info.num_bytes
        return is_whole and self._digest.hexdigest() == self._info.checksum

    def restart(self) -> None:
        """Forget what came."""
        self._file.truncate(0)
        self.position = 0
        self._digest = hashlib.sha256()


def sha256_hex(data: bytes | bytearray) -> str:
    """Return the checksum as manifests have it."""
    return hashlib.sha256(data).hexdigest()


def read_into(readinto: Callable[[memoryview], int | None], data: bytearray) -> int:
    """Fill ``data`` and return how much of it could be filled."""
    view, position = memoryview(data), 0
    while position < len(data):
        count = readinto(view[position:])
        if not count:
            break
        position += count
    return position
