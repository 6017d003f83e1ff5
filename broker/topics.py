"""Every topic of the fog, with message, QoS and retained flag. The only place that names one.

Topics are ``e2llm/v1/<site>/...``. A receiver learns the sender from the topic: the broker's
ACL lets a client publish only under its own name, so the broker vouches for it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, Generic, TypeVar

from broker.control import (
    DeviceControl,
    DeviceProfile,
    DeviceStatus,
    GatewayStatus,
    ModelManifest,
    TensorOffer,
)
from broker.events import Event
from broker.plan import Assignment, Loaded, Plan, PlanHistory, PlannerStatus
from broker.telemetry import Telemetry
from broker.whatif import WhatIf, WhatIfAnswer
from broker.work import KvChunk, KvCredit, Work

PREFIX: Final = "e2llm/v1"
PLANNER_USER: Final = "planner"
MessageT = TypeVar("MessageT")

_LEVEL = re.compile(r"[^/+#\x00]+")
_PLACEHOLDER = re.compile(r"{(\w+)}")


class QoS(IntEnum):
    """MQTT quality of service."""

    AT_MOST_ONCE = 0
    AT_LEAST_ONCE = 1
    EXACTLY_ONCE = 2


class InvalidTopicLevelError(ValueError):
    """A site, device, gateway or client name cannot stand in an MQTT topic."""


def check_level(name: str) -> str:
    """Return ``name`` if it can be one topic level, else raise `InvalidTopicLevelError`."""
    if not _LEVEL.fullmatch(name) or name.startswith("$") or len(name) > 128:
        raise InvalidTopicLevelError(
            f"{name!r} cannot be used in an MQTT topic: no '/', '+', '#', not empty, "
            "not starting with '$', at most 128 characters"
        )
    return name


@dataclass(frozen=True)
class Topic(Generic[MessageT]):
    """A family of topics that carry one kind of message.

    Attributes:
        template: Path below the site, placeholders in braces.
        message: Control struct, or the union of data headers, or ``bytes``.
    """

    template: str
    message: Any
    qos: QoS
    retained: bool = False
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        pattern = _PLACEHOLDER.sub(r"(?P<\1>[^/]+)", self.template)
        object.__setattr__(self, "_pattern", re.compile(f"{PREFIX}/(?P<site>[^/]+)/{pattern}"))

    def path(self, site: str, **names: str | int) -> str:
        """Return the concrete topic; every placeholder must be given."""
        levels = {key: check_level(str(value)) for key, value in names.items()}
        return f"{PREFIX}/{check_level(site)}/{self.template.format(**levels)}"

    def filter(self, site: str, **names: str | int) -> str:
        """Return a subscription filter: placeholders that are not given become ``+``."""
        keys = _PLACEHOLDER.findall(self.template)
        levels = {key: str(names.get(key, "+")) for key in keys}
        return f"{PREFIX}/{site}/{self.template.format(**levels)}"

    def match(self, topic: str) -> dict[str, str] | None:
        """Return the names in a concrete topic, ``site`` among them; None if it is another."""
        found = self._pattern.fullmatch(topic)
        return found.groupdict() if found else None


# Control: retained, so that whoever starts late learns the state; QoS 1, since each message
# matters and none is frequent.
MODEL: Final = Topic[ModelManifest](
    "models/{model}", ModelManifest, QoS.AT_LEAST_ONCE, retained=True
)
# Also the last will: the broker publishes "lost" here for a node that died.
DEVICE_STATUS: Final = Topic[DeviceStatus](
    "devices/{device}/status", DeviceStatus, QoS.AT_LEAST_ONCE, retained=True
)
DEVICE_PROFILE: Final = Topic[DeviceProfile](
    "devices/{device}/profile", DeviceProfile, QoS.AT_LEAST_ONCE, retained=True
)
DEVICE_ASSIGNMENT: Final = Topic[Assignment](
    "devices/{device}/assignment", Assignment, QoS.AT_LEAST_ONCE, retained=True
)
DEVICE_CONTROL: Final = Topic[DeviceControl](
    "devices/{device}/control", DeviceControl, QoS.AT_LEAST_ONCE, retained=True
)
DEVICE_LOADED: Final = Topic[Loaded](
    "devices/{device}/loaded", Loaded, QoS.AT_LEAST_ONCE, retained=True
)
# To the other nodes: what they may fetch from this one.
DEVICE_TENSORS: Final = Topic[TensorOffer](
    "devices/{device}/tensors", TensorOffer, QoS.AT_LEAST_ONCE, retained=True
)
PLAN: Final = Topic[Plan]("plan", Plan, QoS.AT_LEAST_ONCE, retained=True)
PLAN_HISTORY: Final = Topic[PlanHistory](
    "plan/history", PlanHistory, QoS.AT_LEAST_ONCE, retained=True
)
PLANNER_STATUS: Final = Topic[PlannerStatus](
    "planner/status", PlannerStatus, QoS.AT_LEAST_ONCE, retained=True
)
GATEWAY_STATUS: Final = Topic[GatewayStatus](
    "gateways/{gateway}/status", GatewayStatus, QoS.AT_LEAST_ONCE, retained=True
)
# Question and answer; not retained, since nobody waits for an old one.
WHAT_IF: Final = Topic[WhatIf]("gateways/{gateway}/what-if", WhatIf, QoS.AT_LEAST_ONCE)
WHAT_IF_ANSWER: Final = Topic[WhatIfAnswer](
    "planner/what-if/{gateway}", WhatIfAnswer, QoS.AT_LEAST_ONCE
)
# Frequent and replaced by the next one: a loss costs one interval.
DEVICE_TELEMETRY: Final = Topic[Telemetry](
    "devices/{device}/telemetry", Telemetry, QoS.AT_MOST_ONCE
)

# Data: duplicates and losses are possible at any QoS and a stage answers by position (design,
# section 3), so a higher QoS would add packets and remove no case. See docs/decisions.
_STAGE = "replicas/{replica}/stages/{stage}/to/{device}/from/{sender}"
STAGE_WORK: Final = Topic[Any](f"{_STAGE}/work", Work, QoS.AT_MOST_ONCE)
STAGE_KV: Final = Topic[KvChunk](f"{_STAGE}/kv", KvChunk, QoS.AT_MOST_ONCE)
STAGE_CREDIT: Final = Topic[KvCredit](f"{_STAGE}/credit", KvCredit, QoS.AT_MOST_ONCE)
GATEWAY_EVENTS: Final = Topic[Any](
    "gateways/{gateway}/from/{sender}/events", Event, QoS.AT_MOST_ONCE
)

# Inference without HTTP: the JSON of the HTTP body in, tokens out.
PROMPT: Final = Topic[bytes]("prompts/{client}", bytes, QoS.AT_LEAST_ONCE)
REPLY: Final = Topic[bytes]("replies/{client}/{request}", bytes, QoS.AT_LEAST_ONCE)

# What Home Assistant shows, one JSON object for each thing there, and what its switch asks. The
# gateway writes the former where a person switched that on; see gateway/home.
HOME_FOG: Final = Topic[bytes]("home-assistant/fog", bytes, QoS.AT_LEAST_ONCE, retained=True)
HOME_DEVICE: Final = Topic[bytes](
    "home-assistant/devices/{device}", bytes, QoS.AT_LEAST_ONCE, retained=True
)
HOME_GATEWAY: Final = Topic[bytes](
    "home-assistant/gateways/{gateway}", bytes, QoS.AT_LEAST_ONCE, retained=True
)
HOME_CORDON: Final = Topic[bytes](
    "home-assistant/devices/{device}/cordon", bytes, QoS.AT_LEAST_ONCE
)

ALL_TOPICS: Final = (
    MODEL,
    DEVICE_STATUS,
    DEVICE_PROFILE,
    DEVICE_ASSIGNMENT,
    DEVICE_CONTROL,
    DEVICE_LOADED,
    DEVICE_TENSORS,
    PLAN,
    PLAN_HISTORY,
    PLANNER_STATUS,
    GATEWAY_STATUS,
    WHAT_IF,
    WHAT_IF_ANSWER,
    DEVICE_TELEMETRY,
    STAGE_WORK,
    STAGE_KV,
    STAGE_CREDIT,
    GATEWAY_EVENTS,
    PROMPT,
    REPLY,
    HOME_FOG,
    HOME_DEVICE,
    HOME_GATEWAY,
    HOME_CORDON,
)


def node_inbox(site: str, device: str) -> str:
    """Filter of everything sent to a device as a stage, whatever the replica."""
    return f"{PREFIX}/{site}/replicas/+/stages/+/to/{check_level(device)}/from/+/+"


# --- Home Assistant's own topics -----------------------------------------------------------
# They lie outside of the site, below a prefix that Home Assistant's owner chooses.

HOME_PREFIX: Final = "homeassistant"
"""The prefix that Home Assistant has by itself."""

_HOME_PREFIX = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")
_NOT_IN_AN_ID = re.compile(r"[^A-Za-z0-9-]")


def check_home_prefix(prefix: str) -> str:
    """Return ``prefix`` if discovery can lie below it, else raise `InvalidTopicLevelError`."""
    own = PREFIX.partition("/")[0]
    if not _HOME_PREFIX.fullmatch(prefix) or prefix.partition("/")[0] == own:
        raise InvalidTopicLevelError(
            f"{prefix!r} cannot be the prefix of Home Assistant's discovery: letters, digits, '.', "
            f"'_' and '-' in each level, and not {own!r} in the first; usually it is {HOME_PREFIX}"
        )
    return prefix


def home_id(name: str) -> str:
    """Return a name in the letters that Home Assistant takes in ids; other names, other ids."""
    return _NOT_IN_AN_ID.sub(lambda found: f"_{ord(found[0]):x}_", name)


def home_discovery(prefix: str, site: str, thing: str) -> str:
    """Return where the discovery of a thing, or with ``+`` of all of a site, is retained."""
    return f"{prefix}/device/e2llm-{home_id(site)}/{thing}/config"


def home_birth(prefix: str) -> str:
    """Return where Home Assistant says that it is online, and its last will that it is not."""
    return f"{prefix}/status"
