"""Node processes around a real Mosquitto, with a hand-written plan in place of a planner.

What a test says is what runs: cuts, roles and devices. The gateway's engine runs inside the
test; nodes are `python -m nodes`, as on a device.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from broker.codec import decode_control, encode_control
from broker.control import ModelManifest
from broker.mqtt import MqttTransport
from broker.plan import Assignment, Loaded, LoadState, Plan, PlanState, Replica, StageAssignment
from broker.topics import DEVICE_ASSIGNMENT, DEVICE_LOADED, PLAN, PLANNER_USER, Topic
from broker.transport import Publication, Received
from gateway.engine import FogEngine
from gateway.requests import Generation
from tests.support.bus import SITE, BrokerProcess

GATEWAY = "gateway-1"
CONTEXT_TOKENS = 512
CHUNK_TOKENS = 32
PATIENCE_SECONDS = 60.0


class RealFog:
    """Mosquitto, node processes and a gateway engine; `serve` sets model and replicas."""

    def __init__(self, folder: Path, devices: Sequence[str], kind: str = "mosquitto") -> None:
        self.folder = folder
        self.devices = tuple(devices)
        self.broker = BrokerProcess(kind, folder, nodes=self.devices, gateways=(GATEWAY,))
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.version = 0
        self.loaded: dict[str, Loaded] = {}

    async def start(self) -> None:
        """Start everything and connect."""
        self.broker.start()
        for device in self.devices:
            self.start_node(device)
        self._planner = MqttTransport(self.broker.address(PLANNER_USER), PLANNER_USER)
        self._planner.subscribe([(DEVICE_LOADED.filter(SITE), DEVICE_LOADED.qos)])
        self._planner.connect()
        transport = MqttTransport(self.broker.address(GATEWAY), GATEWAY)
        self.engine = FogEngine(transport, SITE, GATEWAY)
        await self.engine.start()
        transport.connect()

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
        }
        with (self.folder / f"{device}.log").open("ab") as log:
            self.nodes[device] = subprocess.Popen(
                [sys.executable, "-m", "nodes"], stdout=log, stderr=log, env=environment
            )

    async def stop(self) -> None:
        """Stop everything."""
        for process in self.nodes.values():
            process.terminate()
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

    async def serve(self, manifest: ModelManifest, replicas: Sequence[Replica]) -> Plan:
        """Publish a model and a plan for it, and wait until it is active everywhere."""
        self.version += 1
        self.engine.publish_model(manifest)
        plan = Plan(
            version=self.version,
            state=PlanState.PREPARING,
            model=manifest.name,
            revision=manifest.revision,
            weights=manifest.weights,
            kv_format=manifest.kv_format,
            chunk_tokens=CHUNK_TOKENS,
            context_tokens=CONTEXT_TOKENS,
            replicas=list(replicas),
        )
        self._publish(PLAN, plan)
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
                chunk_tokens=CHUNK_TOKENS,
                hold=stages,
            )
            self._publish(DEVICE_ASSIGNMENT, assignment, device=device)
        await self._until_loaded({device for device, stages in held.items() if stages})
        active = Plan(**{f: getattr(plan, f) for f in plan.__struct_fields__ if f != "state"},
                      state=PlanState.ACTIVE)  # fmt: skip
        self._publish(PLAN, active)
        await self._until(lambda: self._is_active(self.version), "the gateway sees the plan")
        return active

    async def answer(self, generation: Generation) -> list[int]:
        """Return the tokens of one request."""
        return [token.token_id async for token in self.engine.generate(generation)]

    def log_of(self, device: str) -> str:
        """Return what a node printed."""
        return (self.folder / f"{device}.log").read_text(errors="replace")

    def _is_active(self, version: int) -> bool:
        plan = self.engine.plan()
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
        deadline = time.monotonic() + PATIENCE_SECONDS
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
    )
