"""What the planner hears, as values: from the bus and from the store. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from broker.codec import decode_control
from broker.control import (
    DeviceControl,
    DeviceProfile,
    DeviceStatus,
    GatewayStatus,
    ModelManifest,
)
from broker.plan import Assignment, Loaded, Plan, PlanHistory, PlannerStatus
from broker.telemetry import Telemetry, parse_telemetry
from broker.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_CONTROL,
    DEVICE_LOADED,
    DEVICE_PROFILE,
    DEVICE_STATUS,
    DEVICE_TELEMETRY,
    GATEWAY_STATUS,
    MODEL,
    PLAN,
    PLAN_HISTORY,
    PLANNER_STATUS,
    WHAT_IF,
    Topic,
)
from broker.whatif import WhatIf

# A payload of None below is a retained message that was cleared.


@dataclass(frozen=True, slots=True)
class BusUp:
    """Connected; retained messages follow."""


@dataclass(frozen=True, slots=True)
class BusDown:
    """The connection is gone."""


@dataclass(frozen=True, slots=True)
class ModelSeen:
    """A gateway publishes a model."""

    model: str
    manifest: ModelManifest | None


@dataclass(frozen=True, slots=True)
class StatusSeen:
    """A device, or its will, says how it is."""

    device: str
    status: DeviceStatus | None


@dataclass(frozen=True, slots=True)
class ProfileSeen:
    """A device measured itself."""

    device: str
    profile: DeviceProfile | None


@dataclass(frozen=True, slots=True)
class LoadedSeen:
    """A device says how far it is with its assignment."""

    device: str
    loaded: Loaded | None


@dataclass(frozen=True, slots=True)
class ControlSeen:
    """A person asked something of a device."""

    device: str
    control: DeviceControl | None


@dataclass(frozen=True, slots=True)
class AssignmentSeen:
    """What some planner, perhaps this one in an earlier life, told a device to hold."""

    device: str
    assignment: Assignment | None


@dataclass(frozen=True, slots=True)
class TelemetrySeen:
    """Telemetry from the bus, with the names of fields that were refused."""

    device: str
    telemetry: Telemetry
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanSeen:
    """A plan on the bus, its own echo included."""

    plan: Plan | None


@dataclass(frozen=True, slots=True)
class HistorySeen:
    """Decisions on the bus, of this planner or one before it."""

    history: PlanHistory | None


@dataclass(frozen=True, slots=True)
class GatewaySeen:
    """A gateway, or its will, says how it is, and how long its requests are."""

    gateway: str
    status: GatewayStatus | None


@dataclass(frozen=True, slots=True)
class PlannerSeen:
    """A planner's status, its own echo included."""

    status: PlannerStatus | None


@dataclass(frozen=True, slots=True)
class WhatIfSeen:
    """A gateway asks what would be planned; it changes nothing."""

    gateway: str
    asked: WhatIf


@dataclass(frozen=True, slots=True)
class StoreSeen:
    """One look into the store.

    Attributes:
        lease: Whether this planner holds the lease; None when the store does not answer.
        last_version: Version of the last plan that the store knows.
        telemetry: The latest of every device that is not silent; from memory when the
            store does not answer.
        refused_fields: Fields that could not be read so far.
    """

    lease: bool | None
    last_version: int = 0
    telemetry: Mapping[str, Telemetry] = field(default_factory=dict)
    refused_fields: int = 0


Event = (
    BusUp
    | BusDown
    | ModelSeen
    | StatusSeen
    | ProfileSeen
    | LoadedSeen
    | ControlSeen
    | AssignmentSeen
    | TelemetrySeen
    | PlanSeen
    | HistorySeen
    | GatewaySeen
    | PlannerSeen
    | WhatIfSeen
    | StoreSeen
)

TOPICS: Final[tuple[Topic[Any], ...]] = (
    MODEL,
    DEVICE_STATUS,
    DEVICE_PROFILE,
    DEVICE_LOADED,
    DEVICE_ASSIGNMENT,
    DEVICE_CONTROL,
    DEVICE_TELEMETRY,
    GATEWAY_STATUS,
    PLAN,
    PLAN_HISTORY,
    PLANNER_STATUS,
    WHAT_IF,
)
"""What a planner subscribes to."""


def event_of(topic: str, payload: bytes) -> Event | None:
    """Return the event of a message; None for a topic that is not the planner's.

    Raises:
        broker.codec.DecodeError: The payload is not what the topic carries. Telemetry never
            raises: it is read field by field.
    """
    if names := MODEL.match(topic):
        return ModelSeen(
            names["model"], decode_control(payload, ModelManifest) if payload else None
        )
    if names := DEVICE_STATUS.match(topic):
        return StatusSeen(
            names["device"], decode_control(payload, DeviceStatus) if payload else None
        )
    if names := DEVICE_PROFILE.match(topic):
        return ProfileSeen(
            names["device"], decode_control(payload, DeviceProfile) if payload else None
        )
    if names := DEVICE_LOADED.match(topic):
        return LoadedSeen(names["device"], decode_control(payload, Loaded) if payload else None)
    if names := DEVICE_CONTROL.match(topic):
        return ControlSeen(
            names["device"], decode_control(payload, DeviceControl) if payload else None
        )
    if names := DEVICE_ASSIGNMENT.match(topic):
        return AssignmentSeen(
            names["device"], decode_control(payload, Assignment) if payload else None
        )
    if names := DEVICE_TELEMETRY.match(topic):
        return TelemetrySeen(names["device"], *parse_telemetry(payload))
    if names := GATEWAY_STATUS.match(topic):
        return GatewaySeen(
            names["gateway"], decode_control(payload, GatewayStatus) if payload else None
        )
    if PLAN_HISTORY.match(topic):
        return HistorySeen(decode_control(payload, PlanHistory) if payload else None)
    if PLAN.match(topic):
        return PlanSeen(decode_control(payload, Plan) if payload else None)
    if PLANNER_STATUS.match(topic):
        return PlannerSeen(decode_control(payload, PlannerStatus) if payload else None)
    if names := WHAT_IF.match(topic):
        return WhatIfSeen(names["gateway"], decode_control(payload, WhatIf))
    return None
