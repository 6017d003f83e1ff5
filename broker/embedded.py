"""The broker that needs nothing installed: amqtt in this process, MQTT 3.1.1.

The only module that imports amqtt. It decides with `broker.access.is_allowed`, as the ACL
file for Mosquitto is written from the same rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import socket
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from amqtt.adapters import StreamReaderAdapter, StreamWriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action as AmqttAction
from amqtt.errors import BrokerError
from amqtt.mqtt.disconnect import DisconnectPacket
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from broker.access import Action, Credential, is_allowed

logger = logging.getLogger(__name__)

_CONNECT_SECONDS: Final = 10.0
_SHUTDOWN_SECONDS: Final = 3.0

# In a session: the `asyncio.Event` that is set when its connection is no longer served.
_SERVED: Final = "e2llm.served"

# MQTT 3.1.1, 3.1.2.2 and 3.2.2.3.
_MQTT_3_1_1: Final = 4
_UNACCEPTABLE_VERSION: Final = b"\x20\x02\x00\x01"


class Users:
    """The users that a running broker goes by. Not a mapping: amqtt would copy it.

    Attributes:
        by_name: Replaced as a whole when a device joins.
    """

    def __init__(self, by_name: Mapping[str, Credential]) -> None:
        self.by_name = by_name


class AccessPlugin(BaseAuthPlugin, BaseTopicPlugin):  # type: ignore[misc]  # amqtt has no types
    """Checks passwords and topics. amqtt makes it, and hands `Config` over."""

    @dataclass
    class Config:
        """What amqtt fills in from the plugin's entry in its configuration."""

        site: str = ""
        home: str | None = None
        users: Users = field(default_factory=lambda: Users({}))

    config: Config

    async def authenticate(self, *, session: Session) -> bool:
        """Whether user and password are right; nobody is anonymous."""
        known = self.config.users.by_name.get(session.username or "")
        password = (session.password or "").encode()
        # Compared also for an unknown user, so that the time does not tell who exists.
        is_right = hmac.compare_digest(password, known.password.encode() if known else b"\0")
        return known is not None and is_right

    async def topic_filtering(
        self,
        *,
        session: Session | None = None,
        topic: str | None = None,
        action: AmqttAction | None = None,
    ) -> bool:
        """Whether the session's user may publish, subscribe to or receive ``topic``."""
        user = (session.username if session else None) or ""
        known = self.config.users.by_name.get(user)
        if known is None or topic is None:
            return False
        wanted = Action.WRITE if action is AmqttAction.PUBLISH else Action.READ
        return is_allowed(user, known.kind, wanted, topic, self.config.site, self.config.home)


class _FirstBytesAgain(StreamReaderAdapter):  # type: ignore[misc]  # amqtt has no types
    """A connection's reader that returns some bytes that were read already, then the rest."""

    def __init__(self, first: bytes, reader: asyncio.StreamReader) -> None:
        super().__init__(reader)
        self._first = first
        self.read_at = time.monotonic()

    async def read(self, n: int = -1) -> bytes:
        """Return ``n`` bytes, or what there is if ``n`` is -1."""
        if n == -1 and self._first:
            n = len(self._first)
        data, self._first = self._first[:n], self._first[n:]
        if len(data) < n or n == -1:
            data += await super().read(n - len(data) if n > 0 else n)
        self.read_at = time.monotonic()
        return data


class _CuttableWriter(StreamWriterAdapter):  # type: ignore[misc]  # amqtt has no types
    """A connection's writer that can end it without waiting for a receiver that is gone."""

    def cut(self) -> None:
        """Forget what is not sent; the connection's reader sees its end."""
        self._writer.transport.abort()


class EmbeddedBroker(Broker):  # type: ignore[misc]  # amqtt has no types
    """amqtt with what it lacks: TCP_NODELAY, an answer for MQTT 5, an end for the silent.

    And one client per client id.
    """

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """Serve one connection."""
        # asyncio sets it too, but the latency of every hop hangs on it.
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            start = await asyncio.wait_for(_read_start(reader), _CONNECT_SECONDS)
            if start.level != _MQTT_3_1_1:
                # Said here, because amqtt 0.12 reads on in the CONNECT of MQTT 5 as if it
                # were 3.1.1, and waits for bytes that never come.
                writer.write(_UNACCEPTABLE_VERSION)
                await writer.drain()
                return
            again = _FirstBytesAgain(start.read, reader)
            watch = asyncio.create_task(_cut_when_silent(again, writer, start.keep_alive_seconds))
            try:
                await self.external_connected(again, _CuttableWriter(writer), listener_name)
            finally:
                watch.cancel()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
            logger.debug("a connection ended before it had begun: %r", error)
        finally:
            writer.close()

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        """Send what is retained, to a session that has the subscription.

        amqtt 0.12 sends every new client also what is retained for all others.
        """
        subscribed = self.subscriptions.get(subscription[0], [])
        if any(each.client_id == session.client_id for each, _qos in subscribed):
            await super()._publish_retained_messages_for_subscription(subscription, session)

    async def _delete_session(self, client_id: str) -> None:
        """End the session of a client that connects again, and its connection before that.

        MQTT 3.1.1, 3.1.4-2. amqtt 0.12 forgets the older session and leaves it connected, so
        that a device which lost its network would be there twice until the keep alive ends.
        """
        session, handler = self.sessions.get(client_id, (None, None))
        served: asyncio.Event | None = session.attributes.get(_SERVED) if session else None
        if served is not None and not served.is_set():
            handler.writer.cut()
            # Its will is said and its subscriptions end, by client id, before ours begin.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(served.wait(), _SHUTDOWN_SECONDS)
        await super()._delete_session(client_id)

    async def _client_message_loop(
        self, client_session: Session, handler: BrokerProtocolHandler
    ) -> None:
        """Serve a client's messages; its DISCONNECT takes effect after those before it.

        amqtt 0.12 forgets what it has acknowledged and not yet delivered when DISCONNECT
        comes, as a device's "sleeping" before it goes.
        """
        disconnect = handler.handle_disconnect
        waiting = client_session.delivered_message_queue

        said: list[DisconnectPacket | None] = []

        async def disconnect_after_messages(packet: DisconnectPacket | None) -> None:
            # The end of the connection, None, may overtake the DISCONNECT that waits here,
            # and would be a lost client with a will.
            said.append(packet)
            end = time.monotonic() + _SHUTDOWN_SECONDS
            while not waiting.empty() and time.monotonic() < end:
                await asyncio.sleep(0)
            await disconnect(said[0])

        handler.handle_disconnect = disconnect_after_messages
        served = client_session.attributes[_SERVED] = asyncio.Event()
        try:
            known, _ = self.sessions.get(client_session.client_id, (None, None))
            if known is client_session:
                await super()._client_message_loop(client_session, handler)
            else:
                # Another took the place before this one was served.
                await handler.stop()
        finally:
            served.set()


@dataclass(frozen=True)
class _ConnectStart:
    """The first bytes of a CONNECT, and what they say (MQTT 3.1.1, 3.1.2)."""

    read: bytes
    level: int
    keep_alive_seconds: int


async def _read_start(reader: asyncio.StreamReader) -> _ConnectStart:
    """Read a CONNECT up to its keep alive; ValueError if it is something else."""
    first = await reader.readexactly(2)
    if first[0] != 0x10:
        raise ValueError("the first packet is not CONNECT")
    # The remaining length: up to four bytes, all but the last with the highest bit set.
    while first[-1] & 0x80:
        if len(first) == 5:
            raise ValueError("the packet's length has more than four bytes")
        first += await reader.readexactly(1)
    name_length = await reader.readexactly(2)
    if name_length not in {b"\x00\x04", b"\x00\x06"}:
        raise ValueError("the protocol is neither MQTT nor MQIsdp")
    # The name, then level, flags and keep alive.
    rest = await reader.readexactly(int.from_bytes(name_length, "big") + 4)
    return _ConnectStart(first + name_length + rest, rest[-4], int.from_bytes(rest[-2:], "big"))


async def _cut_when_silent(
    reader: _FirstBytesAgain, writer: asyncio.StreamWriter, keep_alive_seconds: int
) -> None:
    """Cut the connection of a client that is silent for 1.5 times its keep alive.

    MQTT 3.1.1, 3.1.2.10. amqtt 0.12 notices the time-out and does nothing, so a device that
    lost its power would never be reported by its will.
    """
    if keep_alive_seconds == 0:
        return
    patience = 1.5 * keep_alive_seconds
    while (left := reader.read_at + patience - time.monotonic()) > 0:
        await asyncio.sleep(left)
    writer.transport.abort()


def amqtt_configuration(
    bind: str, port: int, users: Users, site: str, home: str | None = None
) -> dict[str, Any]:
    """Return amqtt's configuration: one TCP listener, our access rules, nothing else."""
    host = f"[{bind}]" if ":" in bind else bind
    plugin = f"{AccessPlugin.__module__}.{AccessPlugin.__qualname__}"
    return {
        "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}},
        "plugins": {plugin: {"site": site, "home": home, "users": users}},
    }


@contextlib.asynccontextmanager
async def embedded_broker(
    bind: str,
    port: int,
    credentials: Mapping[str, Credential] | Users,
    site: str,
    home: str | None = None,
) -> AsyncIterator[EmbeddedBroker]:
    """Serve MQTT until the block is left, by the rules of `broker.access.rules`.

    Raises:
        OSError: The address cannot be bound.
    """
    # amqtt would log a traceback when the port is taken, and wrap the reason.
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    socket.create_server((bind, port), family=family).close()
    users = credentials if isinstance(credentials, Users) else Users(credentials)
    broker = EmbeddedBroker(amqtt_configuration(bind, port, users, site, home))
    await broker.start()
    try:
        yield broker
    finally:
        try:
            await asyncio.wait_for(broker.shutdown(), _SHUTDOWN_SECONDS)
        except (TimeoutError, BrokerError) as error:
            logger.warning("the embedded broker did not stop in order: %r", error)
