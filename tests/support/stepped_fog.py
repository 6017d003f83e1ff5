"""A planner, nodes and a gateway's dispatcher on a memory broker, moved by one clock.

The real loops of planner and nodes, one after the other: nothing runs beside the test, nothing
waits, and every run is the same. Loading takes the time that the test says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Event
from typing import Any

import msgspec.structs

from broker.codec import encode_control
from broker.control import Control, DeviceState, GatewayStatus, ModelManifest
from broker.identity import identity
from broker.memory import MemoryBroker, MemoryTransport
from broker.topics import (
    DEVICE_LOADED,
    DEVICE_STATUS,
    DEVICE_TELEMETRY,
    GATEWAY_EVENTS,
    GATEWAY_STATUS,
    MODEL,
    PLAN,
    Topic,
)
from broker.transport import Inbox, Publication, Received, Transport
from broker.work import Sampling
from gateway.choice import in_order
from gateway.desks import Desks
from gateway.dispatch import Actions, FailedOutcome
from gateway.fogview import FogView
from gateway.intake import Intake, Reported
from gateway.requests import Generation
from nodes.connections import Connections, Filters
from nodes.loader import Loader
from nodes.orders import LoadOrder
from nodes.presence import Presence
from nodes.profiler import Profiler
from nodes.service import NodeService
from nodes.settings import MemoryOffer
from planner.live.service import PlannerService, farewell
from planner.live.settings import PlannerSettings
from planner.live.store import Store
from tests.support.node_rig import InstantCalibrator

SITE = "stepped"
GATEWAY = "gateway-1"
STEP_SECONDS = 0.05


class SlowLoader(Loader):
    """Carries an order out when the clock says so; the newest one wins, as in the real one."""

    def __init__(self, load_seconds: float) -> None:
        super().__init__(beside=lambda work: work())
        self.now = 0.0
        self._load_seconds = load_seconds
        self._waiting: tuple[float, LoadOrder] | None = None

    def want(self, order: LoadOrder) -> None:
        self._waiting = self.now + (self._load_seconds if order.build else 0.0), order

    def step(self, now: float) -> None:
        """Let time pass."""
        self.now = now
        if self._waiting is not None and now >= self._waiting[0]:
            (_, order), self._waiting = self._waiting, None
            self.process(order)


@dataclass(frozen=True, slots=True)
class Node:
    """One device's process."""

    service: NodeService
    connections: Connections
    loader: SlowLoader


class SteppedFog:
    """A whole fog.

    Args:
        manifest: Of the model that is served.
        memory_bytes: Device to what it offers.
        load_seconds: How long a device loads, whatever it is.
        settings: Of the planner, beside the usual ones of a test.
        bus: The broker, when a test wants one of its own.
        others: Models that are published beside it.

    Attributes:
        now: The fog's clock, in seconds.
        tokens: Tokens that the client of each request got, with the time of each.
        failed: What became of requests without an answer.
        done: Requests that have all their tokens.
        num_complete: How many replicas were complete at each step since `watch`.
    """

    def __init__(
        self,
        manifest: ModelManifest,
        memory_bytes: Mapping[str, int],
        *,
        load_seconds: float = 2.0,
        settings: Mapping[str, Any] | None = None,
        bus: MemoryBroker | None = None,
        others: Sequence[ModelManifest] = (),
    ) -> None:
        self.now = 1000.0
        self.bus = bus or MemoryBroker()
        self.tokens: dict[str, list[tuple[int, float]]] = {}
        self.failed: dict[str, str] = {}
        self.done: set[str] = set()
        self.num_complete: list[int] = []
        self.models = {each.name: each for each in (manifest, *others)}
        self._intake = Intake(GATEWAY)
        self._desks = Desks(SITE, GATEWAY)
        self._finishing: list[str] = []
        self._bus = MemoryTransport(self.bus, GATEWAY)
        topics: tuple[Topic[Any], ...] = (
            PLAN, DEVICE_STATUS, DEVICE_LOADED, DEVICE_TELEMETRY, GATEWAY_EVENTS,
        )  # fmt: skip
        self._bus.subscribe([(topic.filter(SITE, gateway=GATEWAY), topic.qos) for topic in topics])
        self._bus.connect()
        for each in self.models.values():
            self.say(MODEL, each, model=each.name)
            self._desks.open(each)
        self._intake.serve(manifest)
        self._memory_bytes = dict(memory_bytes)
        self._load_seconds = load_seconds
        self._nodes: dict[str, Node] = {}
        for device in memory_bytes:
            self.start_node(device)
        self._settings = dict(settings or {})
        self.planner = self._planner(session=1)

    # --- what a test does --------------------------------------------------------------------

    def say(self, topic: Topic[Any], message: Control, **names: str) -> None:
        """Publish a control message."""
        payload = encode_control(message)
        path = topic.path(SITE, **names)
        self._bus.publish(Publication(path, payload, topic.qos, topic.retained))

    def use(self, *names: str) -> None:
        """Let the fog serve these models."""
        for name, manifest in self.models.items():
            self.models[name] = msgspec.structs.replace(manifest, in_use=name in names)
            self._desks.open(self.models[name])
        for name, manifest in sorted(self.models.items(), key=lambda item: item[1].in_use):
            self.say(MODEL, manifest, model=name)

    @property
    def model(self) -> ModelManifest:
        """The model of requests that name none."""
        return in_order(self.models.values(), self.view.active)[0]

    def ask(
        self,
        request_id: str,
        prompt_ids: Sequence[int],
        max_tokens: int,
        sampling: Sampling | None = None,
        *,
        model: str | None = None,
    ) -> None:
        """Submit a request; half of those that do not say how are sampled."""
        self.tokens[request_id] = []
        sampled = len(self.tokens) % 2 == 0
        generation = Generation(
            request_id=request_id,
            prompt_ids=tuple(prompt_ids),
            max_tokens=max_tokens,
            sampling=sampling
            or Sampling(
                temperature=0.8 if sampled else 0.0, seed=len(self.tokens), ignore_eos=True
            ),
            model=identity(self.model if model is None else self.models[model]),
        )
        self._act(self._desks.submit(generation, self.now))

    def run(self, seconds: float) -> Iterator[None]:
        """Let time pass, and stop after each step for what the test does then."""
        until = self.now + seconds
        while self.now < until:
            self._step()
            yield

    @property
    def view(self) -> FogView:
        """What the gateway knows."""
        return self._intake.view

    @property
    def services(self) -> list[NodeService]:
        """The loops of all devices."""
        return [node.service for node in self._nodes.values()]

    @property
    def longest_gap_seconds(self) -> float:
        """The longest time between two tokens of an answer."""
        return max(
            later - earlier
            for answer in self.tokens.values()
            for (_, earlier), (_, later) in pairwise(answer)
        )

    # --- the fog -----------------------------------------------------------------------------

    def _step(self) -> None:
        self.now += STEP_SECONDS
        for device in self._nodes:
            self.turn(device)
            self.move(device)
        self.turn("planner")
        self.move("planner")
        self.turn(GATEWAY)
        self.move(GATEWAY)
        self.num_complete.append(len(self.view.with_model(self.model).complete_replicas))

    def turn(self, actor: str) -> None:
        """Somebody's turn begins; a recording marks it."""

    def move(self, actor: str) -> None:
        """Let one of the processes do what is due."""
        if actor == "planner":
            self.planner.step(0.0)
        elif actor == GATEWAY:
            self._move_gateway()
        else:
            node = self._nodes[actor]
            node.loader.step(self.now)
            node.service.run_once(0.0)

    def _move_gateway(self) -> None:
        while (event := self._bus.receive(0.0)) is not None:
            if isinstance(event, Received):
                self._take(event)
        self._act(self._desks.tick(self.now))
        unfinished = [
            each.revision
            for each in self.models.values()
            if not each.in_use and self._desks.num_unfinished(each)
        ]
        if unfinished != self._finishing:
            self._finishing = unfinished
            status = GatewayStatus(state=DeviceState.READY, session=1, finishing=unfinished)
            self.say(GATEWAY_STATUS, status, gateway=GATEWAY)

    def _take(self, message: Received) -> None:
        taken = self._intake.take(message, self.now)
        if isinstance(taken, FogView):
            self._act(self._desks.fog_changed(taken, self.now))
        elif isinstance(taken, Reported):
            self._desks.reported(taken.device, self.now)
        elif isinstance(taken, tuple):
            self._act(self._desks.handle(*taken, self.now))

    def _act(self, actions: Actions) -> None:
        for publication in actions.publications:
            self._bus.publish(publication)
        for outcome in actions.outcomes:
            if isinstance(outcome, FailedOutcome):
                self.failed[outcome.request_id] = str(outcome.error)
                continue
            answer = self.tokens[outcome.request_id]
            assert outcome.token.index == len(answer), "a gap or a repeat"
            answer.append((outcome.token.token_id, self.now))
            if outcome.token.finish_reason is not None:
                self.done.add(outcome.request_id)

    def start_node(
        self, device: str, session: int = 1_000, kind: type[Connections] = Connections
    ) -> None:
        """Start a device's process."""
        presence = Presence(session)
        connections = kind(device, SITE, self._dial, software="test")
        loader = SlowLoader(self._load_seconds)
        service = NodeService(
            connections,
            presence,
            Profiler(InstantCalibrator(), MemoryOffer(num_bytes=self._memory_bytes[device])),
            loader,
            clock=lambda: self.now,
        )
        connections.open(presence.session)
        self._nodes[device] = Node(service, connections, loader)

    def stop_node(self, device: str) -> None:
        """End a device's process in good order."""
        self._nodes.pop(device).connections.close()

    def _dial(
        self, client: str, filters: Filters, will: Publication | None, inbox: Inbox
    ) -> Transport:
        transport = MemoryTransport(self.bus, client, will=will, inbox=inbox)
        transport.subscribe(filters)
        transport.connect()
        return transport

    def restart_planner(self, session: int) -> None:
        """End the planner's process in good order, and start it anew."""
        stop = Event()
        stop.set()
        self.planner.run(stop)
        self.planner = self._planner(session)

    def _planner(self, session: int) -> PlannerService:
        values: dict[str, Any] = {
            "broker": "mqtt://localhost",
            "site": SITE,
            "expect_devices": len(self._nodes),
            "prompt_tokens": 32,
            "answer_tokens": 32,
            "context_tokens": 128,
            **self._settings,
        }
        known = PlannerSettings(**values)
        transport = MemoryTransport(self.bus, "planner", will=farewell(known, session))
        store = Store(None, SITE, session, telemetry_seconds=30.0, lease_seconds=10.0)
        service = PlannerService(
            transport, store, known, session, clock=lambda: self.now, utc=lambda: 1.7e9 + self.now
        )
        transport.connect()
        return service
