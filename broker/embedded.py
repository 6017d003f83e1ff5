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
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from amqtt.broker import Broker
from amqtt.contexts import Action as AmqttAction
from amqtt.errors import BrokerError
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from broker.access import Action, Credential, is_allowed

logger = logging.getLogger(__name__)

_SHUTDOWN_SECONDS: Final = 3.0


class AccessPlugin(BaseAuthPlugin, BaseTopicPlugin):  # type: ignore[misc]  # amqtt has no types
    """Checks passwords and topics. amqtt makes it, and hands `Config` over."""

    @dataclass
    class Config:
        """What amqtt fills in from the plugin's entry in its configuration."""

        site: str = ""
        credentials: dict[str, Credential] = field(default_factory=dict)

    config: Config

    async def authenticate(self, *, session: Session) -> bool:
        """Whether user and password are right; nobody is anonymous."""
        known = self.config.credentials.get(session.username or "")
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
        known = self.config.credentials.get(user)
        if known is None or topic is None:
            return False
        wanted = Action.WRITE if action is AmqttAction.PUBLISH else Action.READ
        return is_allowed(user, known.kind, wanted, topic, self.config.site)


class EmbeddedBroker(Broker):  # type: ignore[misc]  # amqtt has no types
    """amqtt with TCP_NODELAY, and with an end for connections that it cannot read."""

    async def stream_connected(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener_name: str
    ) -> None:
        """Serve one connection."""
        # asyncio sets it too, but the latency of every hop hangs on it.
        connection: socket.socket = writer.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await super().stream_connected(reader, writer, listener_name)
        finally:
            # amqtt 0.12 leaves a connection open whose CONNECT it cannot parse, as MQTT 5
            # with a will, and the client would wait for an answer.
            writer.close()


def amqtt_configuration(
    bind: str, port: int, credentials: Mapping[str, Credential], site: str
) -> dict[str, Any]:
    """Return amqtt's configuration: one TCP listener, our access rules, nothing else."""
    host = f"[{bind}]" if ":" in bind else bind
    plugin = f"{AccessPlugin.__module__}.{AccessPlugin.__qualname__}"
    return {
        "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}},
        "plugins": {plugin: {"site": site, "credentials": dict(credentials)}},
    }


@contextlib.asynccontextmanager
async def embedded_broker(
    bind: str, port: int, credentials: Mapping[str, Credential], site: str
) -> AsyncIterator[EmbeddedBroker]:
    """Serve MQTT until the block is left.

    Raises:
        OSError: The address cannot be bound.
    """
    # amqtt would log a traceback when the port is taken, and wrap the reason.
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    socket.create_server((bind, port), family=family).close()
    broker = EmbeddedBroker(amqtt_configuration(bind, port, credentials, site))
    await broker.start()
    try:
        yield broker
    finally:
        try:
            await asyncio.wait_for(broker.shutdown(), _SHUTDOWN_SECONDS)
        except (TimeoutError, BrokerError) as error:
            logger.warning("the embedded broker did not stop in order: %r", error)
