"""What Home Assistant is told of a fog, gathered from what the gateway knows. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from broker.control import DeviceState
from broker.plan import LayerRange, Replica, Role
from broker.telemetry import Telemetry
from gateway.fogview import DeviceView, FogView
from gateway.requests import Readiness

_NOTHING = Telemetry()


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """One device.

    Attributes:
        roles: Of the replicas in which it holds a stage, each once.
        layers: That it holds, in their order.
    """

    view: DeviceView
    roles: tuple[Role, ...] = ()
    layers: tuple[LayerRange, ...] = ()

    @property
    def telemetry(self) -> Telemetry:
        """What it reported last."""
        return self.view.telemetry or _NOTHING


@dataclass(frozen=True, slots=True)
class FogFacts:
    """The fog as a whole: what every gateway says alike.

    Attributes:
        devices: Those that are known, in the order of their names.
        replicas: Of all models.
        problem: Why no prompt can be answered, or what keeps the planner from a plan.
    """

    devices: tuple[DeviceFacts, ...]
    replicas: tuple[Replica, ...]
    num_complete: int
    models: tuple[str, ...]
    plan_version: int | None
    problem: str | None

    @property
    def ready(self) -> list[DeviceFacts]:
        """The devices that work."""
        return [device for device in self.devices if device.view.is_ready]

    @property
    def state(self) -> str:
        """``ready``, ``degraded`` when a replica is incomplete, or ``waiting`` for one."""
        if not self.num_complete:
            return "waiting"
        return "ready" if self.num_complete == len(self.replicas) else "degraded"

    @property
    def tokens_per_second(self) -> float:
        """Tokens that all replicas give, by what their first stages report.

        Every token goes through all stages of a replica, so one of them counts.
        """
        first = {
            replica.stages[0].device
            for replica in self.replicas
            if replica.role is not Role.PREFILL
        }
        return sum(
            device.telemetry.tokens_per_second or 0.0
            for device in self.ready
            if device.view.id in first
        )


@dataclass(frozen=True, slots=True)
class GatewayFacts:
    """One gateway: its own requests."""

    num_waiting: int
    num_running: int


def fog_facts(view: FogView, readiness: Readiness) -> FogFacts:
    """Return what is known; a device counts as soon as it has said how it is."""
    replicas = tuple(view.active.all_replicas) if view.active is not None else ()
    planner = view.planner.problem if view.planner is not None else None
    is_lost = view.planner is not None and view.planner.state is not DeviceState.READY
    problem = planner or ("the planner is not running" if is_lost else None)
    return FogFacts(
        devices=tuple(
            _device_facts(device, replicas)
            for _, device in sorted(view.devices.items())
            if device.status is not None
        ),
        replicas=replicas,
        num_complete=sum(view.is_complete(replica) for replica in replicas),
        models=tuple(part.model for part in view.active.parts) if view.active is not None else (),
        plan_version=view.active.version if view.active is not None else None,
        problem=problem if readiness.ready else readiness.reason,
    )


def gateway_facts(readiness: Readiness) -> GatewayFacts:
    """Return how many requests a gateway has, as its readiness says."""
    details = readiness.details
    return GatewayFacts(details.get("waiting", 0), details.get("running", 0))


def _device_facts(device: DeviceView, replicas: Iterable[Replica]) -> DeviceFacts:
    held = [
        (replica.role, stage.layers)
        for replica in replicas
        for stage in replica.stages
        if stage.device == device.id
    ]
    roles = tuple(dict.fromkeys(role for role, _ in held))
    return DeviceFacts(device, roles, tuple(sorted(layers for _, layers in held)))
