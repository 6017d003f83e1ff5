"""What Home Assistant shows of a fog: the one list of it. Pure.

Discovery and states are both made from these entities (`gateway.home.things`), so neither can
name what the other lacks. The keys in ``config`` are those of Home Assistant's MQTT integration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from broker.control import DeviceState, Placement
from broker.plan import LayerRange
from gateway.home.facts import DeviceFacts, FogFacts, GatewayFacts

FactsT = TypeVar("FactsT")
Value = str | int | float | None

ON: Final = "ON"
OFF: Final = "OFF"

_LONGEST_STATE: Final = 255
"""Characters of a state in Home Assistant."""
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity(Generic[FactsT]):
    """One entity of a thing.

    Attributes:
        key: Its name in the thing's state, and the end of its unique id.
        name: What a person reads behind the thing's name.
        value: Its state; what it returns None for is unknown. Without it the entity shows the
            ``state`` in what the thing says of itself, its last will included, and is there
            also when the thing is not.
        platform: ``sensor``, or ``switch``, which is one that takes commands.
        config: Further keys of its discovery.
        is_measured: It always changes a little, so not every change is published.
        is_optional: Not every thing has it: it is shown from its first value on.
    """

    key: str
    name: str
    value: Callable[[FactsT], Value] | None
    platform: str = "sensor"
    config: Mapping[str, Any] = field(default_factory=dict)
    is_measured: bool = False
    is_optional: bool = False


def _measured(unit: str | None = None, kind: str | None = None, **more: Any) -> dict[str, Any]:
    """Return the keys of a number of which Home Assistant keeps statistics."""
    keys = {"unit_of_measurement": unit, "device_class": kind, "state_class": "measurement"}
    return {key: value for key, value in keys.items() if value is not None} | more


def _one_of(values: Iterable[str], **more: Any) -> dict[str, Any]:
    return {"device_class": "enum", "options": list(values), **more}


def _percent(ratio: float | None) -> int | None:
    return None if ratio is None else round(100 * ratio)


def _mebibytes(num_bytes: int | None) -> int | None:
    return None if num_bytes is None else round(num_bytes / _MIB)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _text(text: str | None, nothing: str) -> str:
    """Return a text as a state: not empty, and not too long."""
    text = text or nothing
    return text if len(text) <= _LONGEST_STATE else f"{text[: _LONGEST_STATE - 1]}\u2026"


def _layers_text(layers: Iterable[LayerRange]) -> str:
    return ", ".join(f"{each.start}-{each.end - 1}" for each in layers)


_DIAGNOSTIC: Final = {"entity_category": "diagnostic"}
_MEMORY: Final = _measured("MiB", "data_size")
_TEMPERATURE: Final = _measured("°C", "temperature")
_TOKENS: Final = _measured("tokens/s", icon="mdi:speedometer")
_LOAD: Final = _measured("%", icon="mdi:chip")
_QUEUE: Final = _measured(icon="mdi:tray-full")

DEVICE_ENTITIES: Final[tuple[Entity[DeviceFacts], ...]] = (
    Entity(
        key="state",
        name="State",
        value=None,
        config=_one_of((state.value for state in DeviceState), icon="mdi:lan-connect"),
    ),
    Entity(
        key="role",
        name="Role",
        value=lambda device: ", ".join(role.value for role in device.roles) or "idle",
        config={"icon": "mdi:account-hard-hat"},
    ),
    Entity(
        key="layers",
        name="Layers",
        value=lambda device: _text(_layers_text(device.layers), "none"),
        config={"icon": "mdi:layers"},
    ),
    Entity(
        key="cordon",
        name="Cordon",
        value=lambda device: OFF if device.view.control.placement is Placement.OPEN else ON,
        platform="switch",
        config={"icon": "mdi:hand-back-left", "entity_category": "config"},
    ),
    Entity(
        key="placement",
        name="Placement",
        value=lambda device: device.view.control.placement.value,
        config=_one_of((placement.value for placement in Placement), **_DIAGNOSTIC),
    ),
    Entity(
        key="tokens_per_second",
        name="Tokens per second",
        value=lambda device: _rounded(device.telemetry.tokens_per_second),
        config=_TOKENS,
        is_measured=True,
    ),
    Entity(
        key="queue",
        name="Queue",
        value=lambda device: device.telemetry.queue_length,
        config=_QUEUE,
        is_measured=True,
    ),
    Entity(
        key="load",
        name="Load",
        value=lambda device: _percent(device.telemetry.cpu_load_ratio),
        config=_LOAD,
        is_measured=True,
    ),
    Entity(
        key="memory_available",
        name="Memory available",
        value=lambda device: _mebibytes(device.telemetry.memory_available_bytes),
        config=_MEMORY,
        is_measured=True,
    ),
    Entity(
        key="memory_used",
        name="Memory used by the model",
        value=lambda device: _mebibytes(device.telemetry.memory_used_bytes),
        config=_MEMORY,
        is_measured=True,
    ),
    Entity(
        key="temperature",
        name="Temperature",
        value=lambda device: _rounded(device.telemetry.temperature_celsius),
        config=_TEMPERATURE,
        is_measured=True,
        is_optional=True,
    ),
    Entity(
        key="battery",
        name="Battery",
        value=lambda device: _percent(device.telemetry.battery_ratio),
        config=_measured("%", "battery"),
        is_measured=True,
        is_optional=True,
    ),
)


def _mean_load(fog: FogFacts) -> int | None:
    loads = [
        device.telemetry.cpu_load_ratio
        for device in fog.ready
        if device.telemetry.cpu_load_ratio is not None
    ]
    return _percent(sum(loads) / len(loads)) if loads else None


def _hottest(fog: FogFacts) -> float | None:
    return _rounded(
        max(
            (
                device.telemetry.temperature_celsius
                for device in fog.ready
                if device.telemetry.temperature_celsius is not None
            ),
            default=None,
        )
    )


FOG_ENTITIES: Final[tuple[Entity[FogFacts], ...]] = (
    Entity(
        key="state",
        name="State",
        value=lambda fog: fog.state,
        config=_one_of(("ready", "degraded", "waiting"), icon="mdi:weather-fog"),
    ),
    Entity(
        key="problem",
        name="Problem",
        value=lambda fog: _text(fog.problem, "none"),
        config=_DIAGNOSTIC,
    ),
    Entity(
        key="model",
        name="Model",
        value=lambda fog: _text(", ".join(fog.models), "none"),
        config={"icon": "mdi:brain"},
    ),
    Entity(
        key="plan",
        name="Plan",
        value=lambda fog: fog.plan_version,
        config={"icon": "mdi:sitemap", **_DIAGNOSTIC},
    ),
    Entity(
        key="devices",
        name="Devices ready",
        value=lambda fog: len(fog.ready),
        config=_measured(icon="mdi:devices"),
    ),
    Entity(
        key="replicas",
        name="Replicas complete",
        value=lambda fog: fog.num_complete,
        config=_measured(icon="mdi:content-copy"),
    ),
    Entity(
        key="tokens_per_second",
        name="Tokens per second",
        value=lambda fog: _rounded(fog.tokens_per_second),
        config=_TOKENS,
        is_measured=True,
    ),
    Entity(
        key="queue",
        name="Queue on devices",
        value=lambda fog: sum(device.telemetry.queue_length or 0 for device in fog.ready),
        config=_QUEUE,
        is_measured=True,
    ),
    Entity(key="load", name="Mean load", value=_mean_load, config=_LOAD, is_measured=True),
    Entity(
        key="memory_available",
        name="Memory available",
        value=lambda fog: _mebibytes(
            sum(device.telemetry.memory_available_bytes or 0 for device in fog.ready)
        ),
        config=_MEMORY,
        is_measured=True,
    ),
    Entity(
        key="temperature",
        name="Highest temperature",
        value=_hottest,
        config=_TEMPERATURE,
        is_measured=True,
        is_optional=True,
    ),
)

GATEWAY_ENTITIES: Final[tuple[Entity[GatewayFacts], ...]] = (
    Entity(
        key="waiting",
        name="Requests waiting",
        value=lambda gateway: gateway.num_waiting,
        config=_QUEUE,
        is_measured=True,
    ),
    Entity(
        key="running",
        name="Requests running",
        value=lambda gateway: gateway.num_running,
        config=_measured(icon="mdi:play"),
        is_measured=True,
    ),
)
