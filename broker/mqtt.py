"""The transport over a real broker, and the only module that imports paho.

One thread per connection runs paho's network loop; paho's callbacks only queue. A publisher
writes its own packet to the socket instead of handing it to that thread: on a small device
the hand-over between two Python threads costs more than the packet (benchmarks/bus.py).

MQTT 5 is tried first, for its reasons ("session taken over"). A broker that speaks only
MQTT 3.1.1 is asked again at once, and nothing in the fog depends on version 5.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import selectors
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any, Final, cast

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from broker.address import BrokerAddress
from broker.backoff import Backoff
from broker.inbox import take
from broker.limits import DEFAULT_MAX_PAYLOAD_BYTES, check_publication
from broker.mqtt_messages import arguments, received, to_paho
from broker.sockets import Wakeup, part
from broker.subscriptions import Subscriptions, check_filters
from broker.topics import QoS
from broker.traffic import Traffic
from broker.transport import (
    Connected,
    Disconnected,
    Inbox,
    Publication,
    Refused,
    TransportClosedError,
    TransportEvent,
)
from broker.waiting import WaitingRoom

logger = logging.getLogger(__name__)

_HANDSHAKE_SECONDS: Final = 5.0
# Some brokers of MQTT 3.1.1 do not refuse a CONNECT of MQTT 5 but choke on it: they close
# the connection, or never answer (amqtt 0.12, when the client has a will).
_V5_HANDSHAKE_SECONDS: Final = 1.0
_FAREWELL_SECONDS: Final = 2.0
# What both brokers take from one client before they answer; QoS 1 is for control alone.
_MAX_INFLIGHT: Final = 20

# MQTT 5, 3.2.2.2; paho translates the return codes of MQTT 3.1.1 to these.
_UNSUPPORTED_VERSION: Final = 0x84
_REFUSALS: Final = {
    _UNSUPPORTED_VERSION: "the broker speaks neither MQTT 5 nor 3.1.1",
    0x85: "the client id is not valid",
    0x86: "bad user name or password",
    0x87: "not authorised; check user name and password",
    0x8A: "banned",
}


class MqttTransport:
    """A client of Mosquitto, amqtt or another MQTT broker.

    Args:
        address: Broker and credential.
        client_id: The same in every session. A second client with it and the same credential
            takes this one's place; the broker sees `BrokerAddress.secret_client_id` of it.
        will: Published by the broker when the connection is lost without `close`.
        inbox: Where events go, from the network thread; a new queue when not given.
        keep_alive_seconds: After 1.5 times this silence the broker publishes the will.
        max_payload_bytes: A larger payload is refused by `publish`.
    """

    def __init__(
        self,
        address: BrokerAddress,
        client_id: str,
        *,
        will: Publication | None = None,
        inbox: Inbox | None = None,
        keep_alive_seconds: int = 10,
        max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES,
    ) -> None:
        if will is not None:
            check_publication(will, max_payload_bytes)
        self.client_id = client_id
        self._address = address
        self._will = will
        self._inbox: Inbox = queue.SimpleQueue() if inbox is None else inbox
        self._keep_alive_seconds = keep_alive_seconds
        self._max_payload_bytes = max_payload_bytes

        # Held for every write to the socket, since paho's writing is not made for two
        # threads, and for the four below. Never taken in a callback: paho holds a lock of
        # its own there, for which a publisher whose write failed waits.
        self._lock = threading.Lock()
        self._client = self._new_client(MQTTProtocolVersion.MQTTv5)
        self._waiting = WaitingRoom()
        self.traffic = Traffic()
        self._is_connected = False
        self._is_closed = False

        self._subscriptions = Subscriptions(lambda filters: self._client.subscribe(filters)[1])
        self._refusal: int | None = None
        self._is_answered = False
        self._lost_reason = ""
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._wakeup = Wakeup()

    def __str__(self) -> str:
        return f"client {self.client_id} of {self._address}"

    @property
    def inbox(self) -> Inbox:
        return self._inbox

    @property
    def is_connected(self) -> bool:
        return self._is_connected

    @property
    def num_dropped(self) -> int:
        return self._waiting.num_dropped

    @property
    def protocol(self) -> str:
        """The MQTT version in use, ``5`` or ``3.1.1``."""
        return "5" if self._client.protocol == MQTTProtocolVersion.MQTTv5 else "3.1.1"

    @property
    def refused_filters(self) -> frozenset[str]:
        """Subscriptions that the broker's ACL refused; each was logged as an error."""
        return self._subscriptions.refused

    def connect(self) -> None:
        """Start connecting and return at once; what happens arrives in the inbox."""
        with self._lock:
            self._check_open()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.name = f"mqtt-{self.client_id}"
                self._thread.start()

    def subscribe(self, filters: Iterable[tuple[str, QoS]]) -> None:
        with self._lock:
            self._check_open()
        self._subscriptions.add(check_filters(filters))
        self._wakeup.set()

    def publish(self, publication: Publication) -> None:
        check_publication(publication, self._max_payload_bytes)
        with self._lock:
            self._check_open()
            if not self._is_connected:
                self._waiting.keep(publication)
                return
            self._hand_over(publication)
            self._client.loop_write()
            # A full socket buffer, or an error on which paho closed the socket, is for the
            # network thread, which may be asleep.
            is_left = self._client.want_write() or self._client.socket() is None
        if is_left:
            self._wakeup.set()

    def receive(self, timeout_seconds: float | None = None) -> TransportEvent | None:
        return take(self._inbox, timeout_seconds)

    def close(self, farewell: Publication | None = None) -> None:
        """Publish the farewell, wait for it up to 2 s, disconnect, and end the thread."""
        info = None
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            if self._is_connected and farewell is not None:
                info = self._hand_over(farewell)
                self._client.loop_write()
        if info is not None:
            self._wakeup.set()
            # Returns when it is on the wire at QoS 0, acknowledged at QoS 1; raises when the
            # connection was lost just now, so that the broker publishes the will instead.
            with contextlib.suppress(RuntimeError, ValueError):
                info.wait_for_publish(_FAREWELL_SECONDS)
        self._stop.set()
        self._wakeup.set()
        if self._thread is None:
            self._wakeup.close()
        else:
            self._thread.join(_FAREWELL_SECONDS + _HANDSHAKE_SECONDS)

    def drop(self) -> None:
        """Cut the connection as a lost network does, so that the will is published.

        For drills and for a broker that does not answer. The transport connects again.
        """
        connection = self._client.socket()
        if isinstance(connection, socket.socket):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # ---- with the lock held

    def _check_open(self) -> None:
        if self._is_closed:
            raise TransportClosedError(f"transport {self.client_id} is closed")

    def _hand_over(self, message: Publication) -> paho.MQTTMessageInfo:
        properties = to_paho(message.properties) if self.protocol == "5" else None
        self.traffic.sent(message.payload)
        return self._client.publish(*arguments(message), properties)

    # ---- the network thread

    def _run(self) -> None:
        backoff = Backoff()
        last_reason = ""
        while not self._stop.is_set():
            is_reached, lived_seconds = self._serve_connection()
            if self._stop.is_set():
                break
            if is_reached and not self._is_answered and self.protocol == "5":
                self._fall_back()
                continue
            if self._refusal is not None:
                reason = _REFUSALS[self._refusal]
                logger.error("%s was refused: %s", self, reason)
                self._inbox.put(Refused(self.client_id, reason))
                break
            if lived_seconds or self._lost_reason != last_reason:
                last_reason = self._lost_reason
                logger.warning("%s is not connected (%s); trying again", self, last_reason)
            self._stop.wait(backoff.next_delay(lived_seconds))
        self._wakeup.close()

    def _serve_connection(self) -> tuple[bool, float]:
        """Connect and serve; return whether the host answered, and the seconds of use."""
        self._refusal = None
        self._is_answered = False
        self._lost_reason = ""
        try:
            self._client.reconnect()
        except OSError as error:
            self._lost_reason = error.strerror or str(error)
            return False, 0.0
        started = time.monotonic()
        patience = _V5_HANDSHAKE_SECONDS if self.protocol == "5" else _HANDSHAKE_SECONDS
        self._serve_socket(started + patience)
        self._subscriptions.lost()
        self._lost_reason = self._lost_reason or "connection lost"
        with self._lock:
            was_connected, self._is_connected = self._is_connected, False
        if was_connected and not self._stop.is_set():
            self._inbox.put(Disconnected(self.client_id, self._lost_reason))
        return True, time.monotonic() - started if was_connected else 0.0

    def _serve_socket(self, deadline: float) -> None:
        """Run paho's network loop until the connection ends.

        paho's own loop waits with `select`, which fails in a process with more than 1024
        open files, as a gateway may have.
        """
        client = self._client
        # Always one: paho has other types for websockets alone.
        connection = cast(socket.socket, client.socket())
        second_hold: socket.socket | None = None
        with selectors.DefaultSelector() as selector:
            selector.register(self._wakeup, selectors.EVENT_READ)
            selector.register(connection, selectors.EVENT_READ)
            # paho forgets its socket when it closes it, here or in a publisher's thread.
            while client.socket() is connection:
                writing = selectors.EVENT_WRITE if client.want_write() else 0
                try:
                    selector.modify(connection, selectors.EVENT_READ | writing)
                    ready = {key.fileobj: events for key, events in selector.select(1.0)}
                except (KeyError, OSError, ValueError):
                    # Closed by a publisher between the lines.
                    break
                if self._wakeup in ready:
                    self._wakeup.clear()
                if ready.get(connection, 0) & selectors.EVENT_READ:
                    client.loop_read()
                with self._lock:
                    if client.want_write():
                        client.loop_write()
                client.loop_misc()
                if not self._is_connected and self._subscriptions.is_complete:
                    self._open_for_publishers()
                now = time.monotonic()
                if self._stop.is_set() and second_hold is None:
                    # paho closes its socket as soon as DISCONNECT is written.
                    second_hold = connection.dup()
                    deadline = now + _FAREWELL_SECONDS
                    client.disconnect()
                if now > deadline and (second_hold or not self._is_answered):
                    self._lost_reason = "the broker does not answer"
                    self.drop()
        if second_hold is not None:
            part(second_hold, _FAREWELL_SECONDS)

    def _open_for_publishers(self) -> None:
        """Send what waited, and report `Connected`: every subscription is answered."""
        with self._lock:
            if self._is_closed:
                return
            for publication in self._waiting.leave():
                self._hand_over(publication)
            self._is_connected = True
        self._inbox.put(Connected(self.client_id))

    def _fall_back(self) -> None:
        """Go on with MQTT 3.1.1, for as long as this transport lives."""
        logger.debug("%s uses MQTT 3.1.1, as the broker does not speak 5", self)
        unanswered = self._client.drop_out_messages()
        with self._lock:
            self._client = self._new_client(MQTTProtocolVersion.MQTTv311)
            self._waiting.put_first(
                Publication(kept.topic, kept.payload, QoS(kept.qos), kept.retain)
                for kept in unanswered
            )

    def _new_client(self, protocol: MQTTProtocolVersion) -> paho.Client:
        is_v5 = protocol == MQTTProtocolVersion.MQTTv5
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            self._address.secret_client_id(self.client_id),
            clean_session=None if is_v5 else True,
            protocol=protocol,
            # Else paho answers the refusal of 3.1.1 with MQTT 3.1.
            reconnect_on_failure=False,
        )
        client.max_inflight_messages = _MAX_INFLIGHT
        client.connect_timeout = _HANDSHAKE_SECONDS
        client.username_pw_set(self._address.username, self._address.password)
        if self._will is not None:
            client.will_set(*arguments(self._will))
        client.on_connect, client.on_subscribe = self._on_connect, self._on_subscribe
        client.on_message, client.on_disconnect = self._on_message, self._on_disconnect
        client.on_socket_open = self._on_socket_open
        # Tells paho that somebody else writes: otherwise `subscribe` and `publish` would
        # write to the socket themselves, beside our network thread.
        client.on_socket_register_write = _ignore
        # At every connect; in 3.1.1 `clean_session` above says so.
        clean_start = True if is_v5 else paho.MQTT_CLEAN_START_FIRST_ONLY
        client.connect_async(
            self._address.host,
            self._address.port,
            self._keep_alive_seconds,
            clean_start=clean_start,
        )
        return client

    # ---- paho's callbacks

    def _on_socket_open(self, _client: Any, _data: Any, connection: Any) -> None:
        # Without it a QoS 1 round trip waits for a delayed ACK, 40 ms (benchmarks/bus.py).
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(
        self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        self._is_answered = reason.value != _UNSUPPORTED_VERSION
        if not reason.is_failure:
            self._subscriptions.accepted()
            return
        self._lost_reason = str(reason)
        # Others, like "server busy", pass.
        self._refusal = reason.value if reason.value in _REFUSALS else None

    def _on_subscribe(
        self, _client: Any, _data: Any, packet_id: int, reasons: list[ReasonCode], _p: Any
    ) -> None:
        for text in self._subscriptions.answered(packet_id, [r.is_failure for r in reasons]):
            logger.error("%s may not subscribe to %s; check the broker's ACL", self, text)

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        with contextlib.suppress(UnicodeDecodeError):
            self._inbox.put(received(message))
            self.traffic.received(message.payload)

    def _on_disconnect(
        self, _client: Any, _data: Any, _flags: Any, reason: ReasonCode, _properties: Any
    ) -> None:
        # 0x80, "unspecified error", is paho's word for a closed socket.
        if not self._lost_reason and reason.value != 0x80:
            self._lost_reason = str(reason)


def _ignore(_client: Any, _data: Any, _connection: Any) -> None:
    pass
