"""What the journal has that Redis has not confirmed, in a file of this gateway.

A gateway that is killed while Redis hangs would take its running requests with it. So whatever
Redis does not have yet is appended here, by the same batches, and the gateway that is started
next reads it. The file lives in the page cache, which outlives the process; a loss of power is
Redis' own concern. It is emptied whenever Redis has all, and holds prompts, so only its owner may
read it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from gateway.entries import Entry

logger = logging.getLogger(__name__)

_LONG_BYTES: Final = 1 << 20
_NAME: Final = "journal.spool"


class _Record(msgspec.Struct, omit_defaults=True):
    """A line of the file.

    Attributes:
        start: Index of the first of ``tokens`` in the answer.
        fields: None: they are in Redis, or in an earlier line.
    """

    entry: str
    status: str
    start: int
    tokens: list[str]
    fields: dict[str, str] | None = None


class Rest:
    """What the spool of an earlier run has of a request whose beginning is in Redis.

    Attributes:
        start: Tokens that Redis has at least.
    """

    def __init__(self, start: int, tokens: list[str]) -> None:
        self.start, self.tokens = start, tokens

    def after(self, items: list[str]) -> list[str]:
        """Return the tokens that Redis has, and what follows them here."""
        if len(items) < self.start:
            return items  # Redis has lost some: the answer is generated again from there.
        return items if len(items) > self.end else items[: self.start] + self.tokens

    @property
    def end(self) -> int:
        """Tokens of the answer that are known."""
        return self.start + len(self.tokens)


class Spool:
    """The file. Errors are logged once and cost nothing but the file's use.

    Args:
        folder: The gateway's state folder.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / _NAME
        self._file: int | None = None
        self._num_bytes = 0
        self._limit = _LONG_BYTES
        self._is_reported = False

    @property
    def is_long(self) -> bool:
        """Whether the file has grown so much that it should be written anew."""
        return self._num_bytes > self._limit

    def read(self) -> tuple[dict[str, Entry], dict[str, Rest]]:
        """Return what an earlier run left: whole entries, and rests of those in Redis."""
        entries: dict[str, Entry] = {}
        rests: dict[str, Rest] = {}
        with self._reported("read"):
            data = self._path.read_bytes() if self._path.exists() else b""
            self._num_bytes = len(data)
            for line in data.splitlines():
                try:
                    record = msgspec.json.decode(line, type=_Record)
                except msgspec.DecodeError:
                    continue  # the last line of a process that was killed while it wrote
                _take(record, entries, rests)
        for entry in entries.values():
            entry.num_spooled = len(entry.tokens)
        return entries, rests

    def append(self, changed: Mapping[str, Entry]) -> None:
        """Write what is new in these entries."""
        self._write(_records(changed))

    def clear(self, entries: Iterable[Entry]) -> None:
        """Forget everything: Redis has it."""
        for entry in entries:
            entry.num_spooled = None
        if self._num_bytes:
            self._write((), is_anew=True)

    def rewrite(self, entries: Mapping[str, Entry]) -> None:
        """Keep only what Redis has not confirmed of these entries."""
        for entry in entries.values():
            entry.num_spooled = None
        waiting = {
            name: entry
            for name, entry in entries.items()
            if entry.num_written is None or entry.num_written < len(entry.tokens)
        }
        self._write(_records(waiting), is_anew=True)
        self._limit = max(_LONG_BYTES, 2 * self._num_bytes)

    def close(self) -> None:
        """Close the file; what is in it stays."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, records: Iterable[_Record], *, is_anew: bool = False) -> None:
        data = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
        with self._reported("written"):
            if self._file is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
                self._file = os.open(self._path, flags, 0o600)
            if is_anew:
                os.ftruncate(self._file, 0)
                self._num_bytes = 0
            self._num_bytes += os.write(self._file, data) if data else 0

    @contextlib.contextmanager
    def _reported(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._is_reported:
                logger.warning("journal: %s cannot be %s (%s)", self._path, what, error)
            self._is_reported = True


def _records(changed: Mapping[str, Entry]) -> list[_Record]:
    """Return the lines that say what is new, and count it as said."""
    records = []
    for name, entry in changed.items():
        is_new = entry.num_spooled is None and entry.num_written is None
        start = entry.num_spooled if entry.num_spooled is not None else entry.num_written or 0
        fields = entry.fields if is_new else None
        records.append(_Record(name, entry.fields["status"], start, entry.tokens[start:], fields))
        entry.num_spooled = len(entry.tokens)
    return records


def _take(record: _Record, entries: dict[str, Entry], rests: dict[str, Rest]) -> None:
    if record.fields is not None:
        rests.pop(record.entry, None)
        entries[record.entry] = Entry(record.fields, is_closed=True)
    if known := entries.get(record.entry):
        known.fields["status"] = record.status
        known.tokens[record.start :] = record.tokens
        return
    rest = rests.get(record.entry)
    if rest is None or record.start < rest.start or record.start > rest.end:
        rests[record.entry] = Rest(record.start, record.tokens)
    else:
        rest.tokens[record.start - rest.start :] = record.tokens
