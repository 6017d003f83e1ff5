"""A node's service on a memory broker, with a clock that the test moves.

Loading happens in the caller and measuring gives fixed times at once, so nothing runs beside
the test and nothing has to be waited for.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from typing import Any

from broker import codec
from broker.control import DecodeTime, LayerTimes, ModelManifest, PrefillTime
from broker.events import Event
from broker.memory import MemoryBroker, MemoryTransport
from broker.placement import replica_id
from broker.plan import (
    Assignment,
    LayerRange,
    Loaded,
    Plan,
    PlanState,
    Replica,
    Role,
    Stage,
    StageAssignment,
)
from broker.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_LOADED,
    GATEWAY_EVENTS,
    MODEL,
    PLAN,
    STAGE_WORK,
    QoS,
    Topic,
)
from broker.transport import Inbox, Publication, Received, Transport
from broker.work import Data
from nodes.calibration import Calibration
from nodes.calibrator import Calibrated, CalibrationFailed
from nodes.connections import Connections, Filters
from nodes.loader import Loader
from nodes.orders import LoadOrder
from nodes.presence import Presence
from nodes.profiler import Profiler
from nodes.service import NodeService
from nodes.settings import MemoryOffer

SITE = "test"
CHUNK_TOKENS = 32
SESSION = 1_000

_TIMES = LayerTimes(
    prefill=[PrefillTime(16, 0.001), PrefillTime(128, 0.008)], decode=[DecodeTime(1, 64, 0.001)]
)
CALIBRATION = Calibration(
    blocks={"full": _TIMES},
    embedding=_TIMES,
    head=_TIMES,
    chunk_tokens=128,
    cpu_seconds_per_second=1.0,
)


class InstantCalibrator:
    """Answers at once with fixed times, or with an error."""

    hardware = "test processor"

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Calibrated | CalibrationFailed] = queue.SimpleQueue()
        self.started: list[str] = []
        self.error: str | None = None

    def start(self, manifest: ModelManifest) -> None:
        self.started.append(manifest.revision)
        if self.error is not None:
            self.events.put(CalibrationFailed(manifest, self.error))
        else:
            self.events.put(Calibrated(manifest, CALIBRATION, "test arithmetic"))


class InlineLoader(Loader):
    """Loads in the caller."""

    def want(self, order: LoadOrder) -> None:
        self.process(order)


class NodeRig:
    """One node, and a client that sees and may say everything."""

    def __init__(
        self, device: str = "pi", *, slowdown: float = 1.0, loader: Loader | None = None
    ) -> None:
        self.device = device
        self.now = 100.0
        self.broker = MemoryBroker()
        self.transports: list[MemoryTransport] = []
        self.calibrator = InstantCalibrator()
        self.presence = Presence(SESSION)
        self.seen: list[Received] = []
        self._version = 0
        self._client = MemoryTransport(self.broker, "observer")
        self._client.subscribe([("#", QoS.AT_LEAST_ONCE)])
        self._client.connect()
        self.connections = Connections(device, SITE, self._dial, software="0.0")
        self.service = NodeService(
            self.connections,
            self.presence,
            Profiler(self.calibrator, MemoryOffer(share=0.6), slowdown=slowdown),
            loader or InlineLoader(),
            slowdown=slowdown,
            clock=lambda: self.now,
        )

    def _dial(
        self, client: str, filters: Filters, will: Publication | None, inbox: Inbox
    ) -> Transport:
        transport = MemoryTransport(self.broker, client, will=will, inbox=inbox)
        transport.subscribe(filters)
        transport.connect()
        self.transports.append(transport)
        return transport

    # --- time ------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect, and let the node settle."""
        self.connections.open(self.presence.session)
        self.run(0.5)

    def run(self, seconds: float) -> None:
        """Let the node work for some time of its own clock."""
        until = self.now + seconds
        while self.now < until:
            self.service.run_once(0.0)
            self.now += 0.005
            while (event := self._client.receive(0.0)) is not None:
                if isinstance(event, Received):
                    self.seen.append(event)

    def run_until(self, is_reached: Callable[[], bool], seconds: float = 60.0) -> None:
        """Let the node work until something is so; AssertionError after ``seconds``."""
        until = self.now + seconds
        while not is_reached():
            assert self.now < until, "the node did not get there"
            self.run(0.01)

    # --- what is said ----------------------------------------------------------------------

    def publish(self, topic: Topic[Any], message: Any, **names: str | int) -> None:
        """Publish a control message."""
        payload = message if isinstance(message, bytes) else codec.encode_control(message)
        path = topic.path(SITE, **names)
        self._client.publish(Publication(path, payload, topic.qos, topic.retained))

    def send(self, replica: str, stage: int, header: Data, sender: str = "gateway") -> None:
        """Send a data message to a stage of the node."""
        self.send_raw(STAGE_WORK, replica, stage, bytes(codec.encode_frame(header)), sender)

    def send_raw(
        self, topic: Topic[Any], replica: str, stage: int | str, payload: bytes, sender: str
    ) -> None:
        """Send any bytes to a stage of the node."""
        path = topic.path(SITE, replica=replica, stage=stage, device=self.device, sender=sender)
        self._client.publish(Publication(path, payload, topic.qos))

    def serve(self, manifest: ModelManifest, *ranges: LayerRange) -> Replica:
        """Publish a model, a plan of one replica, and this node's part of it: all its stages.

        With several ranges only the first is this node's; others are of devices that are
        not there.
        """
        ranges = ranges or (LayerRange(0, manifest.config["num_hidden_layers"]),)
        devices = [self.device, *(f"other-{index}" for index in range(1, len(ranges)))]
        replica = make_replica(manifest, list(zip(devices, ranges, strict=True)))
        self.publish(MODEL, manifest, model=manifest.name)
        self.publish(PLAN, self.plan(manifest, replica))
        self.assign(manifest, [(replica, 0)])
        self.run(0.1)
        return replica

    def plan(self, manifest: ModelManifest, *replicas: Replica, version: int = 1) -> Plan:
        """Return an active plan."""
        return Plan(
            version=version,
            state=PlanState.ACTIVE,
            model=manifest.name,
            revision=manifest.revision,
            weights=manifest.weights,
            kv_format=manifest.kv_format,
            chunk_tokens=CHUNK_TOKENS,
            context_tokens=256,
            replicas=list(replicas),
        )

    def assign(
        self,
        manifest: ModelManifest,
        hold: Sequence[tuple[Replica, int]],
        prepare: Sequence[tuple[Replica, int]] = (),
        *,
        version: int | None = None,
        frees_first: bool = False,
    ) -> int:
        """Publish an assignment, with a growing version unless one is given."""
        self._version = version if version is not None else self._version + 1
        message = Assignment(
            version=self._version,
            model=manifest.name,
            revision=manifest.revision,
            weights=manifest.weights,
            kv_format=manifest.kv_format,
            chunk_tokens=CHUNK_TOKENS,
            hold=[_stage(*stage) for stage in hold],
            prepare=[_stage(*stage) for stage in prepare],
            frees_first=frees_first,
        )
        self.publish(DEVICE_ASSIGNMENT, message, device=self.device)
        return self._version

    # --- what is heard ---------------------------------------------------------------------

    def retained(self, topic: Topic[Any]) -> Any:
        """Return the node's retained message on a topic of its own; None without one."""
        payload = self.broker.retained.get(topic.path(SITE, device=self.device))
        return None if payload is None else codec.decode_control(payload, topic.message)

    @property
    def loaded(self) -> Loaded:
        """What the node says that it holds."""
        found = self.retained(DEVICE_LOADED)
        assert isinstance(found, Loaded)
        return found

    def heard(self, topic: Topic[Any]) -> list[Any]:
        """Return every message on a topic, in order."""
        return [
            codec.decode_control(event.payload, topic.message)
            for event in self.seen
            if topic.match(event.topic)
        ]

    def events(self) -> list[Any]:
        """Return what the node said to gateways."""
        return [
            codec.decode_frame(event.payload, Event)[0]
            for event in self.seen
            if GATEWAY_EVENTS.match(event.topic)
        ]


def make_replica(manifest: ModelManifest, stages: Sequence[tuple[str, LayerRange]]) -> Replica:
    """Return a replica of the given devices and layers."""
    return Replica(
        id=replica_id(manifest.revision, manifest.weights, stages),
        role=Role.BOTH,
        slots=4,
        prefill_slots=4,
        kv_tokens=512,
        stages=[
            Stage(
                device=device,
                layers=layers,
                embedding=index == 0,
                head=index == len(stages) - 1,
                predicted_seconds=0.01,
            )
            for index, (device, layers) in enumerate(stages)
        ],
    )


def _stage(replica: Replica, index: int) -> StageAssignment:
    stage = replica.stages[index]
    return StageAssignment(
        replica=replica.id,
        stage=index,
        layers=stage.layers,
        embedding=stage.embedding,
        head=stage.head,
        kv_tokens=replica.kv_tokens,
        embedding_device=replica.embedding_device(index),
    )
