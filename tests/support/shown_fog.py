"""A fog for the tests of the dashboard: what its devices say, as a gateway would have heard it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from msgspec import structs, to_builtins

from broker.control import DeviceState, DeviceStatus
from broker.plan import (
    Considered,
    LayerRange,
    Loaded,
    LoadState,
    Plan,
    PlanDecision,
    PlanState,
    Rates,
    Replica,
    Role,
    Stage,
)
from broker.telemetry import Reading, Telemetry
from gateway import report
from gateway.fogview import FogView
from gateway.measures import Measures
from gateway.requests import Readiness
from tests.support.fake_engine import FakeEngine, Script

NUM_LAYERS = 24
DEVICES = ("mini-pc", "laptop", "jetson", "pi5-kitchen", "pi5-hall", "pi4-cellar")


def replica(name: str, role: Role, devices: Sequence[str]) -> Replica:
    """Return a replica that splits the layers evenly over devices."""
    cuts = [NUM_LAYERS * index // len(devices) for index in range(len(devices) + 1)]
    stages = [
        Stage(
            device=device,
            layers=LayerRange(cuts[index], cuts[index + 1]),
            embedding=index == 0,
            head=index == len(devices) - 1,
            predicted_seconds=0.02,
        )
        for index, device in enumerate(devices)
    ]
    predicted = Rates(
        prefill_tokens_per_second=240.0,
        decode_tokens_per_second=18.5,
        requests_per_second=0.4,
        ttft_seconds=0.6,
        tpot_seconds=0.08,
    )
    return Replica(
        id=name,
        role=role,
        slots=4,
        prefill_slots=2,
        kv_tokens=8192,
        stages=stages,
        predicted=predicted,
    )


def plan_of(version: int, *replicas: Replica, trigger: str = "first plan") -> Plan:
    """Return an active plan of replicas."""
    return Plan(
        version=version,
        state=PlanState.ACTIVE,
        model="e2llm-demo",
        revision="0123456789abcdef",
        weights="float32",
        kv_format="float32",
        chunk_tokens=128,
        context_tokens=2048,
        replicas=list(replicas),
        predicted=Rates(
            prefill_tokens_per_second=240.0,
            decode_tokens_per_second=37.0,
            requests_per_second=0.8,
            ttft_seconds=0.6,
            tpot_seconds=0.08,
            kv_seconds=0.045,
        ),
        reasons=dict.fromkeys(DEVICES, "fast enough for its layers"),
        optimality="certified optimal",
        trigger=trigger,
    )


class ShownFog(FakeEngine):
    """An engine whose fog a test changes while pages show it.

    Attributes:
        view: What the gateway knows.
        decisions: Of the planner, oldest first.
    """

    def __init__(self, script: Script = lambda generation: []) -> None:
        super().__init__(script)
        self.start_over()

    def start_over(self) -> None:
        """Forget what tests did: six devices hold a plan with a prefill and a decode replica."""
        self.view = FogView()
        self.decisions: list[PlanDecision] = []
        self.measures = Measures()
        self.num_running = self.num_waiting = 0
        for index, device in enumerate(DEVICES):
            self.say(device)
            self.report(
                device,
                cpu_load_ratio=0.15 + 0.13 * index,
                tokens_per_second=18.2 - 2.5 * index,
                queue_length=index % 3,
                temperature_celsius=41.0 + 3 * index,
                memory_used_bytes=(300 + 40 * index) * 2**20,
                memory_available_bytes=2**31,
            )
        self.adopt(
            plan_of(
                1,
                replica("r-3f9a1c22d0", Role.PREFILL, DEVICES[:2]),
                replica("r-81b7e0aa45", Role.DECODE, DEVICES[2:5]),
            )
        )

    def adopt(self, plan: Plan) -> None:
        """Make a plan active, with all its stages in memory."""
        self.view = self.view.with_plan(plan)
        held: dict[str, list[str]] = {}
        for each in plan.replicas:
            for index, stage in enumerate(each.stages):
                held.setdefault(stage.device, []).append(f"{each.id}/{index}")
        for device, stages in held.items():
            loaded = Loaded(
                session=1,
                version=plan.version,
                state=LoadState.LOADED,
                stages=stages,
                loaded_bytes=100,
                total_bytes=100,
            )
            self.view = self.view.with_loaded(device, loaded, time.monotonic())
        considered = Considered(
            name="best",
            num_replicas=len(plan.replicas),
            num_devices=len(held),
            requests_per_second=0.8,
            objective_seconds=2.5,
        )
        self.decisions.append(
            PlanDecision(
                at=time.time(),
                trigger=plan.trigger,
                outcome="adopted",
                reason="it is faster than no plan",
                version=plan.version,
                considered=[considered],
            )
        )

    def say(self, device: str, state: DeviceState = DeviceState.READY, session: int = 1) -> None:
        """Let a device, or its last will, say its state."""
        now = time.monotonic()
        self.view = self.view.with_status(
            device, DeviceStatus(state=state, session=session, software="e2llm 0.1"), now
        )

    def report(self, device: str, **values: Any) -> None:
        """Let a device send telemetry."""
        known = self.view.devices[device].telemetry or Telemetry()
        telemetry = structs.replace(known, **values)
        self.view = self.view.with_telemetry(device, Reading(telemetry), time.monotonic())

    def fog_plan(self) -> dict[str, Any]:
        measured = self.measures.body(self.view.replicas, time.monotonic())
        return report.plan_body(self.view, measured)

    def devices(self) -> list[dict[str, Any]]:
        return report.devices_body(self.view, time.monotonic())

    def plan_history(self) -> list[dict[str, Any]]:
        decisions: list[dict[str, Any]] = to_builtins(self.decisions)
        return decisions

    def readiness(self) -> Readiness:
        return report.readiness(self.view, None, self._details())

    def _details(self) -> dict[str, Any]:
        return {"running": self.num_running, "waiting": self.num_waiting}
