"""The list of API keys of a gateway: in a file, in Redis, and what this process goes by.

The file in the gateway's state folder is its copy, and with Redis down, or without one, the
keys in it stay in force. With Redis, all gateways of a site have the same keys within seconds.
`KeyFile` is also what ``e2llm key --state`` writes where no gateway runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

import msgspec

from broker.credentials import write_private
from gateway.access.keys import (
    GIVEN_ID,
    Key,
    KeyRing,
    Limits,
    Scope,
    given_key,
    make_key,
    ring_of,
)

logger = logging.getLogger(__name__)

FILE_NAME: Final = "keys.json"
LOOK_SECONDS: Final = 2.0
"""How often file and Redis are looked at, and so how long a revoked key may still be good."""


class KeyFileError(Exception):
    """The file of keys cannot be read or written; the message names it."""


class KeyFile:
    """A copy of the list on disk, mode 600, whole or not at all.

    Args:
        folder: State folder of a gateway.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME

    @property
    def stamp(self) -> int:
        """Changes when the file does; 0: there is none."""
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return 0

    def read(self) -> KeyRing:
        """Return the keys; none if there is no file.

        Raises:
            KeyFileError: It is damaged, or may not be read.
        """
        try:
            keys = msgspec.json.decode(self.path.read_bytes(), type=list[Key])
        except FileNotFoundError:
            return KeyRing()
        except (OSError, ValueError) as error:
            # Never an empty list instead: that would open the gateway.
            raise KeyFileError(f"{self.path} cannot be read: {error}") from error
        return ring_of(keys)

    def update(self, change: Callable[[KeyRing], KeyRing]) -> KeyRing:
        """Change the list, with no other process in between; return it.

        Raises:
            KeyFileError: It cannot be read or written.
        """
        try:
            with self._locked():
                before = self.read()
                after = change(before)
                if after.keys != before.keys:
                    keys = [after.keys[key_id] for key_id in sorted(after.keys)]
                    text = msgspec.json.format(msgspec.json.encode(keys)).decode()
                    write_private(self.path, text + "\n")
                return after
        except OSError as error:
            raise KeyFileError(f"{self.path} cannot be written: {error}") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(descriptor) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class SharedKeys(Protocol):
    """Where the gateways of a site share their lists."""

    async def exchange(self, ring: KeyRing) -> KeyRing | None:
        """Return what all know together, after adding what ``ring`` has; None: no answer."""


class NothingShared:
    """For a gateway without Redis."""

    async def exchange(self, ring: KeyRing) -> KeyRing | None:
        return None


class KeyStore:
    """The keys that a gateway goes by.

    Args:
        file: Its copy.
        shared: Where it meets other gateways.
        admin_key: One more key with the scope admin, from the settings.
        clock: UTC seconds.

    Raises:
        KeyFileError: The copy is damaged.
        ValueError: ``admin_key`` is too short.

    Attributes:
        ring: The keys that count, that of the settings among them.
    """

    def __init__(
        self,
        file: KeyFile,
        shared: SharedKeys | None = None,
        *,
        admin_key: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._file = file
        self._shared: SharedKeys = shared or NothingShared()
        self._given = None if admin_key is None else given_key(admin_key)
        self._clock = clock
        self._stamp = file.stamp
        self._go_by(file.read())
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Learn what other gateways know, and begin to keep up."""
        await self.look()
        self._task = asyncio.create_task(self._keep_up(), name="api-keys")

    async def stop(self) -> None:
        """Stop keeping up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def create(
        self,
        name: str,
        scope: Scope,
        *,
        expires_at: float | None = None,
        limits: Limits | None = None,
        device: str | None = None,
    ) -> tuple[str, Key]:
        """Make a key; return it, which nobody can ever see again, and its record.

        Raises:
            KeyRefusedError: It makes no sense.
            KeyFileError: The copy on disk cannot be written, so the key does not count.
        """
        now = self._clock()
        text, key = make_key(name, scope, now, expires_at=expires_at, limits=limits, device=device)
        self.ring.added(key, now)
        await self._change(ring_of([key]))
        return text, key

    async def revoke(self, key_id: str) -> Key:
        """End a key; return its record.

        Raises:
            KeyRefusedError: There is none of that id, or it is the last that may make keys.
            KeyFileError: The copy on disk cannot be written.
        """
        key = self.ring.revoked(key_id, self._clock()).keys[key_id]
        await self._change(ring_of([key]))
        return key

    async def look(self) -> None:
        """Take in what has changed in the file and in Redis; `KeyFileError` as above."""
        stamp = self._file.stamp
        if stamp != self._stamp:
            self._stamp = stamp
            self._go_by(self._ring.merged(self._file.read()))
        known = await self._shared.exchange(self._ring)
        if known is not None:
            self._take(known)

    def _go_by(self, ring: KeyRing) -> None:
        self._ring = ring
        given = {} if self._given is None else {GIVEN_ID: self._given}
        self.ring = KeyRing({**ring.keys, **given})

    async def _change(self, ring: KeyRing) -> None:
        self._take(ring)
        known = await self._shared.exchange(self._ring)
        if known is not None:
            self._take(known)

    def _take(self, ring: KeyRing) -> None:
        merged = self._ring.merged(ring).pruned(self._clock())
        if merged.keys != self._ring.keys:
            # First on disk: a key that a gateway told somebody must outlive it.
            now = self._clock()
            self._go_by(self._file.update(lambda copy: copy.merged(merged).pruned(now)))
            self._stamp = self._file.stamp

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self.look()
            except KeyFileError as error:
                logger.error("API keys: %s; those that were known stay in force", error)
