"""A broker inside the process, for tests and for running a whole fog without a network.

It keeps what the code above a transport relies on: order per sender, retained messages,
last wills, wildcards, take-over of a client id. Faults and time are given from outside, so
a test decides what is lost, repeated, late or out of order. It does not know about
credentials, and nothing here starts a thread: delivery happens in the caller of `publish`.
"""

from __future__ import annotations

import heapq
import itertools
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from broker.filters import covers, is_filter
from broker.inbox import take
from broker.limits import DEFAULT_MAX_PAYLOAD_BYTES, check_publication
from broker.topics import QoS
from broker.traffic import Traffic
from broker.transport import (
    Connected,
    Disconnected,
    Inbox,
    Publication,
    Received,
    TransportClosedError,
    TransportEvent,
)
from broker.waiting import WaitingRoom

Fault = Callable[[Publication], Sequence[tuple[float, Publication]]]
"""What becomes of a message: ``(delay in seconds, message)`` for each copy that arrives."""


class MemoryBroker:
    """Subscriptions, retained messages and wills of all `MemoryTransport` clients.

    Args:
        fault: Asked about every message that is neither retained nor QoS 1, so about data:
            those are the messages that a real network and broker may lose or hold up. An
            empty answer loses it; several repeat it; a delay lets later ones overtake it.
    """

    def __init__(self, fault: Fault | None = None) -> None:
        self.fault = fault
        self.num_published = 0
        self._retained: dict[str, Publication] = {}
        self._clients: dict[str, MemoryTransport] = {}
        self._late: list[tuple[float, int, Publication]] = []
        self._order = itertools.count()
        self._now_seconds = 0.0
        # Re-entrant: a take-over drops the older client, whose will is delivered.
        self._lock = threading.RLock()

    @property
    def retained(self) -> dict[str, bytes]:
        """The retained payload of each topic that has one."""
        with self._lock:
            return {topic: bytes(kept.payload) for topic, kept in self._retained.items()}

    def advance(self, now_seconds: float) -> None:
        """Move the clock to ``now_seconds`` and deliver what was due until then, in order."""
        with self._lock:
            while self._late and self._late[0][0] <= now_seconds:
                self._now_seconds, _, publication = heapq.heappop(self._late)
                self._fan_out(publication)
            self._now_seconds = max(self._now_seconds, now_seconds)

    def deliver(self, publication: Publication) -> None:
        """Retain the message if it says so, and pass it through the fault to subscribers."""
        with self._lock:
            self.num_published += 1
            if publication.retained:
                if publication.payload:
                    self._retained[publication.topic] = publication
                else:
                    # MQTT 3.1.1, 3.3.1.3: an empty retained message clears the topic.
                    self._retained.pop(publication.topic, None)
            if (
                self.fault is None
                or publication.retained
                or publication.qos is not QoS.AT_MOST_ONCE
            ):
                self._fan_out(publication)
                return
            for delay_seconds, copy in self.fault(publication):
                if delay_seconds <= 0:
                    self._fan_out(copy)
                else:
                    due = self._now_seconds + delay_seconds
                    heapq.heappush(self._late, (due, next(self._order), copy))

    def _fan_out(self, publication: Publication) -> None:
        message = Received(
            publication.topic, bytes(publication.payload), properties=publication.properties
        )
        for client in list(self._clients.values()):
            if client.wants(publication.topic):
                client.accept(message)

    def _attach(self, client: MemoryTransport) -> None:
        older = self._clients.get(client.client_id)
        if older is not None:
            older.drop("another client connected with this id")
        self._clients[client.client_id] = client

    def _detach(self, client: MemoryTransport) -> None:
        if self._clients.get(client.client_id) is client:
            del self._clients[client.client_id]

    def _send_retained(self, client: MemoryTransport, filters: Iterable[str]) -> None:
        for text in filters:
            for topic, kept in list(self._retained.items()):
                if covers(text, topic):
                    payload = bytes(kept.payload)
                    client.accept(
                        Received(topic, payload, retained=True, properties=kept.properties)
                    )


class MemoryTransport:
    """A client of a `MemoryBroker`.

    Unlike `broker.mqtt.MqttTransport` it does not come back by itself after `drop`: the
    test calls `connect` again.

    Args:
        broker: Where it connects.
        client_id: As in MQTT, unique: a second client with the id takes the first one's place.
        will: Published by the broker when the connection is lost without `close`.
        inbox: Where events go; a new queue when not given.
        max_payload_bytes: A larger payload is refused by `publish`.
    """

    def __init__(
        self,
        broker: MemoryBroker,
        client_id: str,
        *,
        will: Publication | None = None,
        inbox: Inbox | None = None,
        max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES,
    ) -> None:
        self.client_id = client_id
        self._broker = broker
        self._will = will
        self._inbox: Inbox = queue.SimpleQueue() if inbox is None else inbox
        self._max_payload_bytes = max_payload_bytes
        self._filters: dict[str, QoS] = {}
        self.traffic = Traffic()
        self._waiting = WaitingRoom()
        self._is_connected = False
        self._is_closed = False

    @property
    def inbox(self) -> Inbox:
        return self._inbox

    @property
    def is_connected(self) -> bool:
        return self._is_connected

    @property
    def num_dropped(self) -> int:
        return self._waiting.num_dropped

    def connect(self) -> None:
        """Connect, send what waited, and report `Connected`; nothing if already connected."""
        with self._broker._lock:
            if self._is_closed:
                raise TransportClosedError(f"transport {self.client_id} is closed")
            if self._is_connected:
                return
            self._broker._attach(self)
            self._is_connected = True
            for publication in self._waiting.leave():
                self._hand_over(publication)
            self._inbox.put(Connected(self.client_id))
            self._broker._send_retained(self, self._filters)

    def subscribe(self, filters: Iterable[tuple[str, QoS]]) -> None:
        wanted = dict(filters)
        for text in wanted:
            if not is_filter(text):
                raise ValueError(f"{text!r} is not a topic filter")
        with self._broker._lock:
            if self._is_closed:
                raise TransportClosedError(f"transport {self.client_id} is closed")
            self._filters.update(wanted)
            if self._is_connected:
                self._broker._send_retained(self, wanted)

    def wants(self, topic: str) -> bool:
        """Whether one of the subscriptions matches ``topic``."""
        return any(covers(text, topic) for text in self._filters)

    def publish(self, publication: Publication) -> None:
        check_publication(publication, self._max_payload_bytes)
        # The caller may go on writing into its bytearray.
        message = replace(publication, payload=bytes(publication.payload))
        with self._broker._lock:
            if self._is_closed:
                raise TransportClosedError(f"transport {self.client_id} is closed")
            if self._is_connected:
                self._hand_over(message)
            else:
                self._waiting.keep(message)

    def receive(self, timeout_seconds: float | None = None) -> TransportEvent | None:
        return take(self._inbox, timeout_seconds)

    def drop(self, reason: str = "the connection was cut") -> None:
        """Lose the connection: the will is published, `Disconnected` reported."""
        with self._broker._lock:
            if not self._is_connected:
                return
            self._is_connected = False
            self._broker._detach(self)
            self._inbox.put(Disconnected(self.client_id, reason))
            if self._will is not None:
                self._broker.deliver(self._will)

    def close(self, farewell: Publication | None = None) -> None:
        with self._broker._lock:
            if self._is_closed:
                return
            self._is_closed = True
            if self._is_connected:
                self._is_connected = False
                self._broker._detach(self)
                if farewell is not None:
                    self._hand_over(farewell)

    def accept(self, message: Received) -> None:
        """Put in a message that the broker has for this client."""
        self.traffic.received(message.payload)
        self._inbox.put(message)

    def _hand_over(self, message: Publication) -> None:
        self.traffic.sent(message.payload)
        self._broker.deliver(message)
