"""Which filters a client wants, which SUBSCRIBE packets are unanswered, what was refused.

No I/O: `broker.mqtt` sends what `ask` says and passes the answers in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from broker.filters import is_filter
from broker.topics import QoS

Send = Callable[[list[tuple[str, int]]], int | None]
"""Sends one SUBSCRIBE and returns its packet id, None if there is no connection."""


def check_filters(filters: Iterable[tuple[str, QoS]]) -> dict[str, QoS]:
    """Return the filters by text; ValueError if one is not a topic filter."""
    wanted = dict(filters)
    for text in wanted:
        if not is_filter(text):
            raise ValueError(f"{text!r} is not a topic filter")
    return wanted


class Subscriptions:
    """The subscriptions of one client over all its connections. Thread-safe.

    Args:
        send: Called with the lock held, so that an answer cannot arrive before its packet
            id is known; it must only queue.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._filters: dict[str, QoS] = {}
        self._asked: dict[int, list[str]] = {}
        self._refused: set[str] = set()
        self._is_accepted = False

    @property
    def refused(self) -> frozenset[str]:
        """Filters that the broker refused in this connection."""
        with self._lock:
            return frozenset(self._refused)

    @property
    def is_complete(self) -> bool:
        """Whether the broker accepted the connection and answered every subscription."""
        with self._lock:
            return self._is_accepted and not self._asked

    def add(self, filters: dict[str, QoS]) -> None:
        """Want these filters from now on, and ask for them if there is a connection."""
        with self._lock:
            self._filters.update(filters)
            if self._is_accepted:
                self._ask(filters)

    def accepted(self) -> None:
        """The broker accepted a connection: ask for all filters."""
        with self._lock:
            self._refused.clear()
            self._asked.clear()
            self._is_accepted = True
            self._ask(self._filters)

    def answered(self, packet_id: int, refusals: Sequence[bool]) -> list[str]:
        """Take a SUBACK's answers, one per filter; return the filters that were refused."""
        with self._lock:
            asked = self._asked.pop(packet_id, [])
            refused = [text for text, no in zip(asked, refusals, strict=False) if no]
            self._refused.update(refused)
            return refused

    def lost(self) -> None:
        """The connection is gone."""
        with self._lock:
            self._is_accepted = False
            self._asked.clear()

    def _ask(self, filters: dict[str, QoS]) -> None:
        # MQTT 3.1.1, 3.8.3: a SUBSCRIBE without a filter is a protocol violation.
        if not filters:
            return
        packet_id = self._send([(text, int(qos)) for text, qos in filters.items()])
        if packet_id is not None:
            self._asked[packet_id] = list(filters)
