"""Whole services with a hand-written plan in place of a planner.

What a test says is what runs: cuts, roles and devices. In a `RealFog` the broker is Mosquitto
and nodes are `python -m nodes`, as on a device; in a `MemoryFog` the same services run in
threads of the test on a memory broker, whose faults a test chooses. The gateway's engine runs
inside the test in both.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from broker.codec import decode_control, encode_control
from broker.control import ModelManifest
from broker.memory import Fault, MemoryBroker, MemoryTransport
from broker.mqtt import MqttTransport
from broker.plan import Assignment, Loaded, LoadState, Plan, PlanState, Replica, StageAssignment
from broker.topics import DEVICE_ASSIGNMENT, DEVICE_LOADED, PLAN, PLANNER_USER, Topic
from broker.transport import Inbox, Publication, Received, Transport
from gateway.engine import FogEngine
from gateway.requests import Generation
from nodes.connections import Connections, Filters
from nodes.context import StageSettings
from nodes.loader import Loader
from nodes.outgoing import Timers
from nodes.presence import Presence
from nodes.profiler import Profiler
from nodes.service import NodeService
from nodes.settings import MemoryOffer
from tests.support.bus import SITE, BrokerProcess
from tests.support.dropped import DroppedMessages
from tests.support.node_rig import InlineLoader, InstantCalibrator

GATEWAY = "gateway-1"
CONTEXT_TOKENS = 512
CHUNK_TOKENS = 32
PATIENCE_SECONDS = 60.0


class ServiceFog:
    """A gateway engine and nodes; `serve` sets model and replicas.

    Attributes:
        chunk_tokens: Grid of prompts; likewise the longest request of the plans.
        patience_seconds: After which something that is waited for counts as not happening.
    """

    chunk_tokens = CHUNK_TOKENS
    context_tokens = CONTEXT_TOKENS
    patience_seconds = PATIENCE_SECONDS
    engine: FogEngine

    def __init__(self, folder: Path, devices: Sequence[str]) -> None:
        self.folder = folder
        self.devices = tuple(devices)
        self.version = 0
        self.loaded: dict[str, Loaded] = {}
        self._planner: Transport

    async def _connect(self, planner: Transport, gateway: Transport) -> None:
        self._planner = planner
        planner.subscribe([(DEVICE_LOADED.filter(SITE), DEVICE_LOADED.qos)])
        self.engine = FogEngine(gateway, SITE, GATEWAY)
        await self.engine.start()

    async def serve(self, manifest: ModelManifest, replicas: Sequence[Replica]) -> Plan:
        """Publish a model and a plan for it, and wait until it is active everywhere."""
        self.version += 1
        self.engine.publish_model(manifest)
        self._publish(PLAN, self._plan(PlanState.PREPARING, manifest, replicas))
        held = {
            device: [
                _assignment(replica, index)
                for replica in replicas
                for index, stage in enumerate(replica.stages)
                if stage.device == device
            ]
            for device in self.devices
        }
        for device, stages in held.items():
            assignment = Assignment(
                version=self.version,
                model=manifest.name,
                revision=manifest.revision,
                weights=manifest.weights,
                kv_format=manifest.kv_format,
                kv_transfer=manifest.kv_transfer,
                chunk_tokens=self.chunk_tokens,
                hold=stages,
            )
            self._publish(DEVICE_ASSIGNMENT, assignment, device=device)
        await self._until_loaded({device for device, stages in held.items() if stages})
        return await self._activate(manifest, replicas)

    async def route(self, manifest: ModelManifest, replicas: Sequence[Replica]) -> Plan:
        """Make a plan of some of the replicas that `serve` loaded active; nothing is freed."""
        self.version += 1
        return await self._activate(manifest, replicas)

    async def _activate(self, manifest: ModelManifest, replicas: Sequence[Replica]) -> Plan:
        active = self._plan(PlanState.ACTIVE, manifest, replicas)
        self._publish(PLAN, active)
        await self._until(lambda: self._is_active(self.version), "the gateway sees the plan")
        return active

    def _plan(self, state: PlanState, manifest: ModelManifest, replicas: Sequence[Replica]) -> Plan:
        return Plan(
            version=self.version,
            state=state,
            model=manifest.name,
            revision=manifest.revision,
            weights=manifest.weights,
            kv_format=manifest.kv_format,
            kv_transfer=manifest.kv_transfer,
            chunk_tokens=self.chunk_tokens,
            context_tokens=self.context_tokens,
            replicas=list(replicas),
        )

    async def answer(self, generation: Generation) -> list[int]:
        """Return the tokens of one request."""
        return [token.token_id async for token in self.engine.generate(generation)]

    def log_of(self, device: str) -> str:
        """Return what a node printed, if it has a log of its own."""
        log = self.folder / f"{device}.log"
        return log.read_text(errors="replace") if log.is_file() else ""

    def _is_active(self, version: int) -> bool:
        plan = self.engine.active_plan()
        ready = self.engine.readiness().ready
        return ready and plan is not None and plan.version == version

    async def _until_loaded(self, devices: set[str]) -> None:
        def are_loaded() -> bool:
            while (event := self._planner.receive(0)) is not None:
                if isinstance(event, Received):
                    names = DEVICE_LOADED.match(event.topic)
                    if names and event.payload:
                        self.loaded[names["device"]] = decode_control(event.payload, Loaded)
            for device in devices:
                loaded = self.loaded.get(device)
                if loaded and loaded.version == self.version and loaded.state is LoadState.FAILED:
                    raise AssertionError(f"{device}: {loaded.error}")
            return all(
                device in self.loaded
                and self.loaded[device].version >= self.version
                and self.loaded[device].state is LoadState.LOADED
                for device in devices
            )

        await self._until(are_loaded, f"{sorted(devices)} have loaded")

    async def _until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + self.patience_seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(f"{d}: {self.log_of(d)[-1500:]}" for d in self.devices)
                raise AssertionError(f"waited in vain until {what}\n{logs}")
            await asyncio.sleep(0.02)

    def _publish(self, topic: Topic[Any], message: Any, **names: str) -> None:
        payload = encode_control(message)
        self._planner.publish(
            Publication(topic.path(SITE, **names), payload, topic.qos, topic.retained)
        )


def _assignment(replica: Replica, index: int) -> StageAssignment:
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


class RealFog(ServiceFog):
    """Mosquitto and node processes.

    Args:
        settings: Of all nodes, as variables of their environment.
    """

    def __init__(
        self, folder: Path, devices: Sequence[str], settings: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(folder, devices)
        self._settings = dict(settings or {})
        self.broker = BrokerProcess("mosquitto", folder, nodes=self.devices, gateways=(GATEWAY,))
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._dropped: DroppedMessages

    async def start(self) -> None:
        """Start everything and connect."""
        self.broker.start()
        self._dropped = DroppedMessages(self.broker.address(PLANNER_USER))
        for device in self.devices:
            self.start_node(device)
        planner = MqttTransport(self.broker.address(PLANNER_USER), PLANNER_USER)
        gateway = MqttTransport(self.broker.address(GATEWAY), GATEWAY)
        await self._connect(planner, gateway)
        planner.connect()
        gateway.connect()

    def start_node(self, device: str) -> None:
        """Start one node process; its log lies in the folder."""
        environment = {
            **os.environ,
            "E2LLM_BROKER": self.broker.address(device).url,
            "E2LLM_SITE": SITE,
            "E2LLM_NODE_ID": device,
            "E2LLM_NODE_MEMORY": "1 GiB",
            "E2LLM_NODE_STATE": str(self.folder / device),
            "E2LLM_NODE_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
            **self._settings_of(device),
        }
        with (self.folder / f"{device}.log").open("ab") as log:
            self.nodes[device] = subprocess.Popen(
                [sys.executable, "-m", "nodes"], stdout=log, stderr=log, env=environment
            )

    def _settings_of(self, device: str) -> Mapping[str, str]:
        """Return what is set for one node; for fogs in which nodes differ."""
        return self._settings

    async def dropped_by_broker(self) -> int:
        """Return how many messages Mosquitto has dropped since its start."""
        return await asyncio.to_thread(self._dropped.count)

    async def stop(self) -> None:
        """Stop everything."""
        for process in self.nodes.values():
            process.terminate()
        self._dropped.close()
        await self.engine.stop()
        self._planner.close()
        for process in self.nodes.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self.broker.process is not None:
            self.broker.stop()


class MemoryFog(ServiceFog):
    """The same services in threads on a memory broker.

    Args:
        fault: What happens to data messages; see `broker.memory.Fault`.
        timers: Patience of the stages; short, so that a lossy test is quick.
    """

    def __init__(
        self,
        folder: Path,
        devices: Sequence[str],
        fault: Fault | None = None,
        timers: Timers | None = None,
    ) -> None:
        super().__init__(folder, devices)
        self.broker = MemoryBroker(fault)
        self._settings = StageSettings(timers or Timers())
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._connections: list[Connections] = []

    async def start(self) -> None:
        """Start everything and connect."""
        self._run(self._advance)
        for device in self.devices:
            self._start_node(device)
        planner = MemoryTransport(self.broker, PLANNER_USER)
        gateway = MemoryTransport(self.broker, GATEWAY)
        await self._connect(planner, gateway)
        planner.connect()
        gateway.connect()

    async def stop(self) -> None:
        """Stop everything."""
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
        for connections in self._connections:
            connections.close()
        await self.engine.stop()
        self._planner.close()

    def _start_node(self, device: str) -> None:
        presence = Presence(time.time_ns() // 1_000_000)
        connections = Connections(device, SITE, self._dial, software="test")
        profiler = Profiler(InstantCalibrator(), MemoryOffer(num_bytes=1 << 30))
        loader = self._loader(device)
        service = NodeService(connections, presence, profiler, loader, stop=self._stop)
        service.core.settings = self._settings
        connections.open(presence.session)
        self._connections.append(connections)
        self._run(service.run)

    def _loader(self, device: str) -> Loader:
        """Return what loads for a device; for tests in which that matters."""
        return InlineLoader()

    def _dial(
        self, client: str, filters: Filters, will: Publication | None, inbox: Inbox
    ) -> Transport:
        transport = MemoryTransport(self.broker, client, will=will, inbox=inbox)
        transport.subscribe(filters)
        transport.connect()
        return transport

    def _advance(self) -> None:
        while not self._stop.wait(0.002):
            self.broker.advance(time.monotonic())

    def _run(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()
