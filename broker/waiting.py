"""What a client keeps while it has no connection. No I/O, and the caller holds the lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from broker.topics import QoS
from broker.transport import Publication

MAX_WAITING = 10_000


class WaitingRoom:
    """Publications that wait for a connection, in their order; the oldest give way.

    At QoS 0 nothing waits: what a stage says there is repeated by position, and a late
    repeat would only be in the way.

    Attributes:
        num_dropped: How many were not kept, or gave way.
    """

    def __init__(self, limit: int = MAX_WAITING) -> None:
        self.num_dropped = 0
        self._waiting: deque[Publication] = deque(maxlen=limit)

    def keep(self, publication: Publication) -> None:
        """Keep the publication if its QoS promises delivery, else drop it."""
        if publication.qos is QoS.AT_MOST_ONCE:
            self.num_dropped += 1
            return
        self.num_dropped += len(self._waiting) == self._waiting.maxlen
        self._waiting.append(publication)

    def put_first(self, publications: Iterable[Publication]) -> None:
        """Keep publications that were sent before and not answered, before all others."""
        self._waiting.extendleft(reversed(list(publications)))

    def leave(self) -> list[Publication]:
        """Return all, the oldest first, and keep none."""
        everything = list(self._waiting)
        self._waiting.clear()
        return everything
