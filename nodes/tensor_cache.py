"""Tensors on this device's disk, one file each, named by checksum; unfinished ones as well.

Several nodes of one host may share the folder: a tensor that one of them is fetching is waited
for by the others. Knows nothing of models or of where bytes come from.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from broker.control import TensorInfo
from nodes.landing import FileLanding, read_into, sha256_hex

logger = logging.getLogger(__name__)

Wait = Callable[[float], None]
"""Sleeps for seconds; raises when waiting is over for good."""

_PART: Final = ".part"
_LOOK_SECONDS: Final = 0.05
# Silence after which who fetches the same tensor is taken for frozen.
_PATIENCE_SECONDS: Final = 5.0
# Freed at once when the limit is reached, so that not every tensor means a look at all files.
_FREED_SHARE: Final = 0.1


class TensorCache:
    """The files of one folder.

    Args:
        limit_bytes: What they take at most; those that were used least lately go first. None:
            whatever is fetched.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        # Fetched and checked by this process, and not read yet.
        self._unread: set[str] = set()
        self._used_bytes: int | None = None

    def find(self, info: TensorInfo) -> Path | None:
        """Return the file of a tensor, unchecked but for its length."""
        path = self._path(info)
        try:
            return path if path.stat().st_size == info.num_bytes else None
        except OSError:
            return None

    def read(self, info: TensorInfo) -> bytearray | None:
        """Return a tensor's bytes; None when it is not here. A damaged file goes."""
        path = self._path(info)
        try:
            size = path.stat().st_size
        except OSError:
            return None
        data = bytearray(info.num_bytes)
        if size == len(data) and _fill(path, data):
            is_checked = info.checksum in self._unread
            if is_checked or sha256_hex(data) == info.checksum:
                self._unread.discard(info.checksum)
                with suppress(OSError):
                    os.utime(path)
                return data
        logger.warning("cached tensor %s is damaged and is fetched again", path.name)
        self._unread.discard(info.checksum)
        with suppress(OSError):
            path.unlink()
        return None

    def forget_unread(self) -> None:
        """Nobody is going to read what was fetched ahead."""
        self._unread.clear()

    @contextmanager
    def receive(self, info: TensorInfo, wait: Wait = time.sleep) -> Iterator[FileLanding | None]:
        """Give the place where a tensor arrives, kept if it is intact in the end.

        What is there when the block ends otherwise is kept as well, to be gone on with. None
        where another process has brought the tensor in the meantime.

        Raises:
            OSError: The folder cannot be written.
        """
        path = self._path(info)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + _PART)
        file = self._open_part(path, part, wait)
        if file is None:
            yield None
            return
        own_part = Path(file.name)
        try:
            with file:
                landing = FileLanding(info, file)
                yield landing
                if landing.is_intact():
                    # In one step, and while the lock is held: nobody sees half of it.
                    own_part.replace(path)
                    self._unread.add(info.checksum)
                    self._make_room(info.num_bytes)
        finally:
            if own_part != part:
                own_part.unlink(missing_ok=True)

    def _open_part(self, path: Path, part: Path, wait: Wait) -> BinaryIO | None:
        """Return the unfinished file, locked; None when the finished one appeared."""
        seen_size, quiet_seconds = -1, 0.0
        while True:
            file = part.open("a+b", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                size = os.fstat(file.fileno()).st_size
                file.close()
                quiet_seconds = 0.0 if size != seen_size else quiet_seconds + _LOOK_SECONDS
                seen_size = size
                if quiet_seconds >= _PATIENCE_SECONDS:
                    # The other one keeps its file; when both are done, either will do.
                    handle, name = tempfile.mkstemp(suffix=_PART, dir=path.parent)
                    os.close(handle)
                    return Path(name).open("a+b", buffering=0)
                wait(_LOOK_SECONDS)
                continue
            if not _is_still_at(file, part):
                # Finished or thrown away by another one between opening and locking.
                file.close()
                continue
            if path.is_file():
                part.unlink()
                file.close()
                return None
            return file

    def _path(self, info: TensorInfo) -> Path:
        return self.folder / info.checksum[:2] / info.checksum

    # --- the limit ------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """What the files take, unfinished ones as well."""
        return sum(size for _, size, _ in self._files())

    def _make_room(self, added_bytes: int) -> None:
        if self.limit_bytes is None:
            return
        # Counted anew where it matters: others may use the folder as well.
        used = self.used_bytes if self._used_bytes is None else self._used_bytes + added_bytes
        self._used_bytes = used
        if used <= self.limit_bytes:
            return
        files = sorted(self._files())
        used = sum(size for _, size, _ in files)
        goal = self.limit_bytes * (1 - _FREED_SHARE) if used > self.limit_bytes else used
        for _, size, path in files:
            if used <= goal:
                break
            if path.name not in self._unread:
                with suppress(OSError):
                    path.unlink()
                    used -= size
        self._used_bytes = used

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield when each file was used last, its bytes and its path."""
        for path in self.folder.glob("??/*"):
            with suppress(OSError):
                stat = path.stat()
                yield stat.st_mtime, stat.st_size, path


def _is_still_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _fill(path: Path, data: bytearray) -> bool:
    """Read a file of that length into ``data``; False when it cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            return read_into(file.readinto, data) == len(data)
    except OSError:
        return False
