"""How many bytes each source has given for an order, and what was wrong with it."""

from __future__ import annotations

import threading

from msgspec.structs import replace

from broker.plan import ReadFrom


class ReadLog:
    """Counts by source; the threads that read share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: dict[str, ReadFrom] = {}

    def add(self, source: str, num_bytes: int) -> None:
        """Bytes came from a source."""
        with self._lock:
            known = self._of(source)
            self._sources[source] = replace(known, num_bytes=known.num_bytes + num_bytes)

    def complain(self, source: str, problem: str) -> None:
        """A source broke off, refused or gave damaged bytes."""
        with self._lock:
            known = self._of(source)
            self._sources[source] = replace(
                known, problems=known.problems + 1, last_problem=problem
            )

    @property
    def sources(self) -> tuple[ReadFrom, ...]:
        """What each source has done so far, in the order in which they came."""
        with self._lock:
            return tuple(self._sources.values())

    def _of(self, source: str) -> ReadFrom:
        return self._sources.get(source) or ReadFrom(source=source, num_bytes=0)
