"""The fog in Home Assistant: a thin shell around `gateway.home.announcements`.

It has a connection of its own, as prompts have, so that nothing here holds up tokens. What it
shows is what the engine knows; what Home Assistant's switch asks, the engine asks of the device.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final, Protocol

from broker.control import DeviceControl
from broker.mqtt import MqttTransport
from broker.topics import (
    HOME_CORDON,
    HOME_DEVICE,
    HOME_FOG,
    QoS,
    home_birth,
    home_discovery,
)
from broker.transport import Connected, Received, Transport, TransportEvent
from gateway.fogview import FogView
from gateway.home.announcements import Announcements
from gateway.home.entities import OFF, ON
from gateway.home.facts import fog_facts, gateway_facts
from gateway.home.remembrance import Remembrance
from gateway.home.things import Shown, is_of_another_gateway, things
from gateway.owners import UnknownDeviceError, cordon_switched
from gateway.receiver import Receiver
from gateway.requests import NotReadyError, Readiness
from gateway.settings import Settings

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.5
SETTLE_SECONDS: Final = 60.0
"""After a connect devices have this time to say that they are there; see `Announcements.look`."""
ECHO_SECONDS: Final = 10.0
"""A broker that has brought nothing back of ours by then does not let us write."""


class ShownFog(Protocol):
    """What is shown, and who carries out what is asked: the engine."""

    @property
    def view(self) -> FogView:
        """What is known of the fog."""

    def readiness(self) -> Readiness:
        """Whether prompts can be answered."""

    def ask_of_device(
        self, device: str, change: Callable[[DeviceControl], DeviceControl]
    ) -> dict[str, Any]:
        """Change what is asked of a device; see `gateway.requests.Engine`."""


class HomeAssistant:
    """Shows a fog in Home Assistant, or takes back what an earlier run showed.

    Args:
        transport: Whoever made it connects it, after `start`; closed by `stop`.
        fog: The engine.
        shown: Who shows what.
        remembrance: What an earlier run showed.
        is_on: Whether the fog is to be shown; else it only takes back.
        clock: Steady seconds.
        utc: Seconds since 1970.
    """

    def __init__(
        self,
        transport: Transport,
        fog: ShownFog,
        shown: Shown,
        remembrance: Remembrance,
        *,
        is_on: bool = True,
        clock: Callable[[], float] = time.monotonic,
        utc: Callable[[], float] = time.time,
    ) -> None:
        self._transport = transport
        self._fog = fog
        self._shown = shown
        self._remembrance = remembrance
        self._is_on = is_on
        self._clock = clock
        self._utc = utc
        before = remembrance.recall()
        self._announcements = Announcements(before.topics if before is not None else ())
        self._kept = self._announcements.topics
        self._receiver = Receiver(transport, self._on_event, "gateway-home")
        self._looking: asyncio.Task[None] | None = None
        self._connected_at: float | None = None
        self._is_doubtful = is_on
        """Nothing has shown yet that the broker lets us write."""

    def start(self) -> None:
        """Subscribe, and begin to look at the fog."""
        site, prefix = self._shown.site, self._shown.prefix
        self._transport.subscribe([(home_birth(prefix), QoS.AT_LEAST_ONCE)])
        if self._is_on:
            self._transport.subscribe(
                [
                    (home_discovery(prefix, site, "+"), QoS.AT_LEAST_ONCE),
                    (HOME_DEVICE.filter(site), HOME_DEVICE.qos),
                    (HOME_FOG.filter(site), HOME_FOG.qos),
                    (HOME_CORDON.filter(site), HOME_CORDON.qos),
                ]
            )
        self._receiver.start()
        self._looking = asyncio.create_task(self._look_again(), name="gateway-home")

    async def stop(self) -> None:
        """Close the transport. What is shown stays: its states expire, or go on elsewhere."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self._receiver.stop()
        if not self._is_on and not self._announcements.topics:
            self._remembrance.keep(self._shown.prefix, ())

    def look(self) -> None:
        """Publish what is new, if there is a connection."""
        now = self._clock()
        if self._connected_at is None or not self._transport.is_connected:
            return
        readiness = self._fog.readiness()
        shown = (
            things(self._shown, fog_facts(self._fog.view, readiness), gateway_facts(readiness))
            if self._is_on
            else []
        )
        knows_all = not self._is_on or now >= self._connected_at + SETTLE_SECONDS
        due = self._announcements.look(shown, now, knows_all=knows_all)
        topics = self._announcements.topics
        if self._is_on and topics != self._kept:
            # Before it is said, so that no end of the process leaves what nobody knows.
            self._kept = topics
            self._remembrance.keep(self._shown.prefix, topics)
        for publication in due:
            self._transport.publish(publication)
        if self._is_doubtful and now >= self._connected_at + ECHO_SECONDS:
            self._is_doubtful = False
            logger.error(
                "the broker does not let this gateway show the fog under %s; start it, or write "
                "its rules, with --home-assistant %s",
                home_discovery(self._shown.prefix, self._shown.site, "+"),
                self._shown.prefix,
            )

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                self.look()
            except Exception:
                # A bug: the gateway answers requests all the same.
                logger.exception("the fog cannot be shown in Home Assistant")

    # --- in ----------------------------------------------------------------------------------

    def _on_event(self, event: TransportEvent) -> None:
        match event:
            case Connected():
                self._connected_at = self._clock()
                self._announcements.again()
            case Received():
                self._take(event)
            case _:
                # The transport itself logs what becomes of the connection.
                pass

    def _take(self, message: Received) -> None:
        names = HOME_CORDON.match(message.topic)
        if names is not None:
            self._switch(names["device"], message)
        elif message.topic == home_birth(self._shown.prefix):
            # It may have missed what was taken back while it was away. A retained one is old.
            if message.payload == b"online" and not message.retained:
                self._announcements.again()
        elif not is_of_another_gateway(self._shown, message.topic):
            self._is_doubtful = False
            self._announcements.heard(message.topic, message.payload)

    def _switch(self, device: str, message: Received) -> None:
        is_on = {ON: True, OFF: False}.get(message.payload.decode("utf-8", "replace"))
        if message.retained or is_on is None:
            # A retained one would be carried out again after every start of a gateway.
            logger.warning(
                "%s: dropped what is neither %s nor %s, or retained", message.topic, ON, OFF
            )
            return
        now = self._utc()
        try:
            self._fog.ask_of_device(device, lambda known: cordon_switched(known, is_on, now))
        except (UnknownDeviceError, NotReadyError) as error:
            logger.warning("%s: %s", message.topic, error)


def home_assistant(
    settings: Settings, fog: ShownFog, software: str
) -> tuple[MqttTransport, HomeAssistant] | None:
    """Return what shows the fog, or takes back what was shown; None: there is nothing to do."""
    remembrance = Remembrance(settings.state)
    before = remembrance.recall()
    prefix = settings.home_assistant or (before.prefix if before is not None else None)
    if prefix is None:
        return None
    transport = MqttTransport(settings.address, f"{settings.gateway_id}~home")
    home = HomeAssistant(
        transport,
        fog,
        Shown(settings.site, prefix, settings.gateway_id, settings.base_url, software),
        remembrance,
        is_on=settings.home_assistant is not None,
    )
    return transport, home
