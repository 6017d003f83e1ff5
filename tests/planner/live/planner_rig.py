"""A whole planner on the memory bus, with devices that load whatever they are told."""

from __future__ import annotations

from typing import Any, TypeVar

import fakeredis

from broker.codec import decode_control, encode_control
from broker.control import Control
from broker.memory import MemoryBroker, MemoryTransport
from broker.plan import Plan
from broker.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_LOADED,
    DEVICE_PROFILE,
    DEVICE_STATUS,
    MODEL,
    PLAN,
    Topic,
)
from broker.transport import Publication
from planner.live.service import PlannerService, farewell
from planner.live.store import Store
from tests.planner import fogs
from tests.planner.live.harness import SPEEDS, settings

SITE = "local"
MessageT = TypeVar("MessageT")


class Fog:
    """A planner, its broker and store, and devices that load whatever they are told."""

    def __init__(self, store: Store, session: int = 100, bus: MemoryBroker | None = None) -> None:
        self.bus = bus or MemoryBroker()
        self.now = 50.0
        self.transport = MemoryTransport(
            self.bus, f"planner-{session}", will=farewell(settings(), session)
        )
        self.service = PlannerService(
            self.transport, store, settings(), session, clock=lambda: self.now, utc=lambda: 1.7e9
        )
        self.transport.connect()
        self.devices = MemoryTransport(self.bus, f"devices-{session}")
        self.devices.connect()

    def say(self, topic: Topic[Any], message: Control, **names: str) -> None:
        path = topic.path(SITE, **names)
        self.devices.publish(Publication(path, encode_control(message), topic.qos, topic.retained))

    def start(self) -> Fog:
        self.say(MODEL, fogs.manifest(), model="demo")
        for name, seconds in SPEEDS.items():
            self.say(DEVICE_STATUS, fogs.status(), device=name)
            self.say(DEVICE_PROFILE, fogs.profile(0.001 * seconds), device=name)
        return self

    def run(self, seconds: float) -> Fog:
        for _ in range(int(seconds / 0.5)):
            self.now += 0.5
            self.service.step(0)
            self._load()
        return self

    def _load(self) -> None:
        for name in SPEEDS:
            wanted = self.retained(DEVICE_ASSIGNMENT, device=name)
            if wanted is not None:
                stages = [f"{s.replica}/{s.stage}" for s in (*wanted.hold, *wanted.prepare)]
                self.say(DEVICE_LOADED, fogs.loaded(wanted.version, stages), device=name)

    def retained(self, topic: Topic[MessageT], **names: str) -> MessageT | None:
        payload = self.bus.retained.get(topic.path(SITE, **names))
        found: MessageT | None = None if payload is None else decode_control(payload, topic.message)
        return found

    @property
    def plan(self) -> Plan:
        found = self.retained(PLAN)
        assert found is not None
        return found


def store(client: fakeredis.FakeRedis | None, session: int = 100) -> Store:
    return Store(client, SITE, session, telemetry_seconds=30.0, lease_seconds=10.0)
