"""What every transport offers: publish, subscribe, and one inbox of events.

Two implementations pass the same contract tests: `broker.mqtt.MqttTransport` (paho) and
`broker.memory.MemoryTransport`. The receiving thread only queues; whoever calls `receive`
does the work. After every connect the transport subscribes again and waits for SUBACK
before it reports `Connected`, so that its owner can publish its retained state.
"""

from __future__ import annotations

import queue
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from broker.topics import QoS
from broker.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Properties:
    """What MQTT 5 says beside a payload; lost where the broker speaks 3.1.1 only.

    Attributes:
        response_topic: Where the sender waits for an answer.
        correlation: By what the sender knows its request; an answer brings it back.
        expiry_seconds: How long the message is worth something, counted at the broker.
        traceparent: User property of that name: the trace that the message is part of.
    """

    response_topic: str | None = None
    correlation: bytes | None = None
    expiry_seconds: int | None = None
    traceparent: str | None = None


NO_PROPERTIES: Final = Properties()


@dataclass(frozen=True, slots=True)
class Publication:
    """One message to publish."""

    topic: str
    payload: bytes | bytearray
    qos: QoS = QoS.AT_MOST_ONCE
    retained: bool = False
    properties: Properties = NO_PROPERTIES


@dataclass(frozen=True, slots=True)
class Received:
    """One message that arrived. ``retained`` is true for state from before the subscription."""

    topic: str
    payload: bytes
    retained: bool = False
    properties: Properties = NO_PROPERTIES


@dataclass(frozen=True, slots=True)
class Connected:
    """The connection stands and every subscription is acknowledged."""

    client_id: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is gone; the transport keeps trying, with jittered, growing delay."""

    client_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker refused the credentials; the transport has given up."""

    client_id: str
    reason: str


TransportEvent = Received | Connected | Disconnected | Refused
Inbox = queue.SimpleQueue[TransportEvent]


class TransportClosedError(Exception):
    """Raised by `Transport.publish` after `Transport.close`."""


class Transport(Protocol):
    """A client of the broker."""

    @property
    def inbox(self) -> Inbox:
        """The queue that `receive` reads; several transports may share one."""

    @property
    def is_connected(self) -> bool:
        """Whether the last event was `Connected`."""

    @property
    def traffic(self) -> Traffic:
        """What went over the connections so far."""

    def subscribe(self, filters: Iterable[tuple[str, QoS]]) -> None:
        """Subscribe now and after every reconnect."""

    def publish(self, publication: Publication) -> None:
        """Hand over one message. Without a connection QoS 0 is dropped, QoS 1 kept."""

    def receive(self, timeout_seconds: float | None = None) -> TransportEvent | None:
        """Return the next event, or None after the time."""

    def close(self, farewell: Publication | None = None) -> None:
        """Publish the farewell (a clean disconnect cancels the last will) and disconnect."""
