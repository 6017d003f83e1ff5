"""Messages from the bus to knowledge and events; bad payloads end here.

Whatever arrives is decoded by the topic's contract. What cannot be read is logged with its
topic, counted by kind of topic, and dropped: one bad peer must not stop the gateway.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from broker.codec import DecodeError, decode_control, decode_frame
from broker.control import GatewayStatus, ModelManifest
from broker.events import Event
from broker.plan import PlanHistory
from broker.telemetry import Faults, complaint, parse_telemetry
from broker.topics import (
    DEVICE_CONTROL,
    DEVICE_LOADED,
    DEVICE_PROFILE,
    DEVICE_STATUS,
    DEVICE_TELEMETRY,
    GATEWAY_EVENTS,
    GATEWAY_STATUS,
    MODEL,
    PLAN,
    PLAN_HISTORY,
    PLANNER_STATUS,
    WHAT_IF_ANSWER,
    Topic,
)
from broker.transport import Received
from broker.whatif import WhatIfAnswer
from gateway.drops import Drops
from gateway.fogview import FogView

TOPICS: tuple[Topic[Any], ...] = (
    GATEWAY_EVENTS,
    DEVICE_TELEMETRY,
    DEVICE_STATUS,
    DEVICE_LOADED,
    DEVICE_PROFILE,
    DEVICE_CONTROL,
    PLAN,
    PLAN_HISTORY,
    PLANNER_STATUS,
    MODEL,
    GATEWAY_STATUS,
    WHAT_IF_ANSWER,
)


@dataclass(frozen=True, slots=True)
class Reported:
    """A device, or an agent for it, sent telemetry."""

    device: str


Taken = FogView | GatewayStatus | Reported | WhatIfAnswer | tuple[str, Event]


logger = logging.getLogger(__name__)


class Intake:
    """What has arrived so far.

    Attributes:
        view: The fog as far as it is known.
        drops: Messages that could not be read, by the topic's template.
        history: The planner's latest decisions.
        own_models: Topic levels under which this gateway, or one before it with the same
            id, has published a model.
        serves_own_models: This gateway has models; what others publish does not count any more.
    """

    def __init__(self, gateway: str) -> None:
        self.view = FogView()
        self.history = PlanHistory()
        self.drops = Drops()
        self._faults = Faults()
        self._gateway = gateway
        self.own_models: set[str] = set()
        self.serves_own_models = False

    def serve(self, manifest: ModelManifest) -> None:
        """This gateway serves that model; what others publish does not count any more."""
        self.serves_own_models = True
        self.view = self.view.with_model(manifest)

    def take(self, message: Received, now: float) -> Taken | None:
        """Take one message in.

        Returns:
            The view if something about routing may have changed, this gateway's own status,
            who sent telemetry, an answer of the planner, or an event and its sender; None if
            there is nothing to do.
        """
        for topic in TOPICS:
            names = topic.match(message.topic)
            if names is not None:
                break
        else:
            self.drops.add("other", message.topic, "no topic of the contract")
            return None
        if topic is DEVICE_TELEMETRY:
            self._take_telemetry(names["device"], message, now)
            return Reported(names["device"])
        try:
            return self._take(topic, names, message.payload, now)
        except DecodeError as error:
            self.drops.add(topic.template, message.topic, str(error))
            return None

    def _take(
        self, topic: Topic[Any], names: dict[str, str], payload: bytes, now: float
    ) -> Taken | None:
        if topic is GATEWAY_EVENTS:
            event, _ = decode_frame(payload, topic.message)
            return names["sender"], event
        if topic is WHAT_IF_ANSWER:
            answer: WhatIfAnswer = decode_control(payload, WhatIfAnswer)
            return answer
        if not payload:
            return self._clear(topic, names)
        content = decode_control(payload, topic.message)
        if topic is PLAN_HISTORY:
            self.history = content
            return None
        if topic is GATEWAY_STATUS:
            return content if names["gateway"] == self._gateway else None
        before = self.view
        if topic is DEVICE_STATUS:
            self.view = before.with_status(names["device"], content, now)
        elif topic is DEVICE_LOADED:
            self.view = before.with_loaded(names["device"], content, now)
        elif topic is DEVICE_PROFILE:
            self.view = before.with_profile(names["device"], content, now)
        elif topic is DEVICE_CONTROL:
            self.view = before.with_control(names["device"], content)
        elif topic is PLAN:
            self.view = before.with_plan(content)
        elif topic is PLANNER_STATUS:
            self.view = before.with_planner(content)
        elif content.gateway == self._gateway:
            self.own_models.add(names["model"])
        elif not self.serves_own_models:
            self.view = before.with_model(content)
        problem = self.view.arithmetic_problem
        if problem is not None and problem != before.arithmetic_problem:
            logger.warning("%s", problem)
        return self.view if self.view is not before else None

    def _take_telemetry(self, device: str, message: Received, now: float) -> None:
        """Any agent may write it, so it is read field by field; nothing is routed by it."""
        reading = parse_telemetry(message.payload)
        if reading.refused:
            news = self._faults.news(device, reading.refused)
            said = complaint(news or reading.refused)
            kind = DEVICE_TELEMETRY.template
            self.drops.add(kind, message.topic, said, is_news=bool(news))
        self.view = self.view.with_telemetry(device, reading, now)

    def _clear(self, topic: Topic[Any], names: dict[str, str]) -> Taken | None:
        """An empty retained payload takes the knowledge back (MQTT 3.1.1, 3.3.1.3)."""
        if names.get("device") not in self.view.devices:
            return None
        if topic is DEVICE_STATUS:
            self.view = self.view.without_status(names["device"])
            return self.view
        if topic is DEVICE_CONTROL:
            self.view = self.view.without_control(names["device"])
            return self.view
        return None
