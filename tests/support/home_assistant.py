"""A Home Assistant for tests: it reads discovery messages and shows what they describe.

As its documentation says it (https://www.home-assistant.io/integrations/mqtt/, .../sensor.mqtt/,
.../switch.mqtt/, read in November 2026), and no more of it than a fog uses. The tables of keys
are ours; they have what is documented for a message of the device-based kind.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

from jinja2 import Environment

from broker.topics import HOME_PREFIX, QoS
from broker.transport import Publication, Received, Transport

DISCOVERY_KEYS: Final = frozenset(
    {"device", "origin", "components", "availability", "availability_mode", "state_topic"}
    | {"availability_topic", "availability_template", "payload_available", "command_topic"}
    | {"payload_not_available", "qos", "encoding"}
)
DEVICE_KEYS: Final = frozenset(
    {"identifiers", "connections", "name", "manufacturer", "model", "model_id", "sw_version"}
    | {"hw_version", "serial_number", "suggested_area", "via_device", "configuration_url"}
)
ORIGIN_KEYS: Final = frozenset({"name", "sw_version", "support_url"})
AVAILABILITY_KEYS: Final = frozenset(
    {"topic", "payload_available", "payload_not_available", "value_template"}
)
_ENTITY_KEYS: Final = frozenset(
    {"platform", "name", "unique_id", "default_entity_id", "availability", "availability_mode"}
    | {"availability_topic", "availability_template", "payload_available", "icon", "encoding"}
    | {"payload_not_available", "device_class", "enabled_by_default", "entity_category", "qos"}
    | {"entity_picture", "json_attributes_topic", "json_attributes_template", "state_topic"}
    | {"value_template"}
)
PLATFORM_KEYS: Final = {
    "sensor": _ENTITY_KEYS
    | {"expire_after", "force_update", "last_reset_value_template", "options", "state_class"}
    | {"suggested_display_precision", "unit_of_measurement"},
    "switch": _ENTITY_KEYS
    | {"command_topic", "command_template", "optimistic", "payload_on", "payload_off"}
    | {"retain", "state_on", "state_off"},
}
REQUIRED_KEYS: Final = {
    "sensor": {"platform", "unique_id", "state_topic"},
    "switch": {"platform", "unique_id", "command_topic"},
}
UNITS: Final[dict[str, set[str | None]]] = {
    "temperature": {"°C", "°F", "K"},
    "battery": {"%"},
    "data_size": {"B", "kB", "MB", "GB", "TB", "KiB", "MiB", "GiB", "TiB"},
    "enum": {None},
}
"""Device classes of sensors that a fog may use, and the units that go with each."""
STATE_CLASSES: Final = {"measurement", "total", "total_increasing"}
CATEGORIES: Final = {"sensor": {"diagnostic"}, "switch": {"config", "diagnostic"}}
LONGEST_STATE: Final = 255

UNKNOWN, UNAVAILABLE = "unknown", "unavailable"
_ID: Final = re.compile(r"[a-zA-Z0-9_-]+")
_TEMPLATES: Final = Environment(autoescape=False)


def complaints(topic: str, payload: bytes, prefix: str = HOME_PREFIX) -> list[str]:
    """Return what Home Assistant would not take, or not understand, of a discovery message."""
    found: list[str] = []
    levels = topic.removeprefix(f"{prefix}/").split("/")
    if not (levels[0] == "device" and levels[-1] == "config" and len(levels) in (3, 4)):
        found.append(f"{topic} is no topic for a device's discovery")
    found += [f"{level} cannot be an id" for level in levels[1:-1] if not _ID.fullmatch(level)]
    message = json.loads(payload)
    found += _unknown("discovery", message, DISCOVERY_KEYS)
    found += _unknown("device", message["device"], DEVICE_KEYS)
    found += _unknown("origin", message["origin"], ORIGIN_KEYS)
    if not message["device"].get("identifiers") and not message["device"].get("connections"):
        found.append("the device has neither identifiers nor connections")
    if not message["origin"].get("name"):
        found.append("the origin has no name")
    for key, component in message["components"].items():
        found += [f"{key}: {each}" for each in _component_complaints(component)]
    return found


def _unknown(where: str, values: dict[str, Any], known: frozenset[str]) -> list[str]:
    return [f"{where} has the unknown key {key}" for key in sorted(values.keys() - known)]


def _component_complaints(component: dict[str, Any]) -> list[str]:
    platform = component["platform"]
    found = _unknown(platform, component, PLATFORM_KEYS[platform])
    found += [f"lacks {key}" for key in sorted(REQUIRED_KEYS[platform] - component.keys())]
    for each in component.get("availability", ()):
        found += _unknown("availability", each, AVAILABILITY_KEYS)
        found += [] if "topic" in each else ["an availability lacks its topic"]
    category = component.get("entity_category")
    if category is not None and category not in CATEGORIES[platform]:
        found.append(f"a {platform} cannot be of the category {category}")
    kind, unit = component.get("device_class"), component.get("unit_of_measurement")
    state_class = component.get("state_class")
    if kind is not None and unit not in UNITS.get(kind, set()):
        found.append(f"{unit} is no unit of {kind}")
    if state_class is not None and state_class not in STATE_CLASSES:
        found.append(f"{state_class} is no class of states")
    if ("options" in component) != (kind == "enum") or (kind == "enum" and state_class):
        found.append("options go with the class enum, and no class of states does")
    if "icon" in component and not re.fullmatch(r"mdi:[a-z0-9-]+", component["icon"]):
        found.append(f"{component['icon']} is no icon")
    return found


@dataclass
class Entity:
    """One entity that was discovered.

    Attributes:
        config: Of its component.
        source: Topic of its discovery.
    """

    config: dict[str, Any]
    source: str
    device: str
    is_available: bool = True
    value: str = UNKNOWN
    expires_at: float | None = None

    @property
    def state(self) -> str:
        """What a person sees."""
        return self.value if self.is_available else UNAVAILABLE


@dataclass
class HomeAssistant:
    """What a person would see.

    Attributes:
        transport: Connected; `take_in` reads what has come.
        entities: By their unique ids.
        ever: Unique ids that were there at some time.
        now: Seconds, for what expires.
    """

    transport: Transport
    prefix: str = HOME_PREFIX
    entities: dict[str, Entity] = field(default_factory=dict)
    ever: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.transport.subscribe(
            [(f"{self.prefix}/device/{levels}/config", QoS.AT_MOST_ONCE) for levels in ("+", "+/+")]
        )

    def say(self, status: str) -> None:
        """Say ``online``, as after a start, or ``offline``."""
        self.transport.publish(Publication(f"{self.prefix}/status", status.encode()))

    def switch(self, unique_id: str, is_on: bool) -> None:
        """Press a switch."""
        config = self.entities[unique_id].config
        payload = config["payload_on"] if is_on else config["payload_off"]
        topic = config["command_topic"]
        self.transport.publish(Publication(topic, payload.encode(), QoS.AT_LEAST_ONCE))

    def states(self, device: str = "") -> dict[str, str]:
        """Return what there is, by unique id; of one device, or of all."""
        self.take_in()
        return {
            unique_id: UNAVAILABLE
            if entity.expires_at is not None and self.now >= entity.expires_at
            else entity.state
            for unique_id, entity in self.entities.items()
            if device in ("", entity.device)
        }

    def take_in(self, timeout_seconds: float = 0.0) -> None:
        """Read what has come."""
        while (event := self.transport.receive(timeout_seconds)) is not None:
            timeout_seconds = 0.0
            if isinstance(event, Received):
                if event.topic.startswith(f"{self.prefix}/device/"):
                    self._discover(event.topic, event.payload)
                else:
                    self._update(event.topic, event.payload.decode())

    def _discover(self, topic: str, payload: bytes) -> None:
        if not payload:
            self.entities = {key: e for key, e in self.entities.items() if e.source != topic}
            return
        self.complaints += complaints(topic, payload, self.prefix)
        message = json.loads(payload)
        shared = {key: message[key] for key in ("qos", "encoding") if key in message}
        topics: set[str] = set()
        for component in message["components"].values():
            config = {**shared, **component}
            unique_id = config["unique_id"]
            known = self.entities.get(unique_id)
            if known is not None and known.source != topic:
                self.complaints.append(f"{unique_id} is there twice")
            if known is not None and known.config == config:
                continue
            name = message["device"]["name"]
            is_available = not config.get("availability")
            self.entities[unique_id] = Entity(config, topic, name, is_available)
            self.ever.add(unique_id)
            topics |= {config["state_topic"]}
            topics |= {each["topic"] for each in config.get("availability", ())}
        # Again, also to topics that it has: it wants what is retained there.
        self.transport.subscribe([(each, QoS.AT_MOST_ONCE) for each in sorted(topics)])

    def _update(self, topic: str, payload: str) -> None:
        for entity in self.entities.values():
            config = entity.config
            for each in config.get("availability", ()):
                if each["topic"] == topic:
                    word = rendered(each.get("value_template"), payload)
                    if word == each.get("payload_available", "online"):
                        entity.is_available = True
                    elif word == each.get("payload_not_available", "offline"):
                        entity.is_available = False
            if config["state_topic"] == topic:
                value = rendered(config.get("value_template"), payload)
                if config["platform"] == "switch":
                    value = {config["state_on"]: "on", config["state_off"]: "off"}[value]
                if len(value) > LONGEST_STATE:
                    self.complaints.append(f"{config['unique_id']} has a state that is too long")
                if value not in config.get("options", (value,)):
                    self.complaints.append(
                        f"{config['unique_id']}: {value} is not among its options"
                    )
                entity.value = UNKNOWN if value == "None" else value
                if "expire_after" in config:
                    entity.expires_at = self.now + config["expire_after"]


def rendered(template: str | None, payload: str) -> str:
    """Return a payload as a template has it; ``value_json`` is there if it is JSON."""
    if template is None:
        return payload
    names: dict[str, Any] = {"value": payload}
    if payload:
        names["value_json"] = json.loads(payload)
    return _TEMPLATES.from_string(template).render(names)
