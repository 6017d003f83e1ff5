"""From entities to what is retained for Home Assistant: discovery and state of each thing. Pure.

A thing is a discovery message of Home Assistant's device-based kind with all its entities, and one
JSON object with their values. Sources, read in November 2026:
https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload and the pages of the
platforms, /integrations/sensor.mqtt/ and /integrations/switch.mqtt/.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from broker.topics import (
    DEVICE_STATUS,
    GATEWAY_STATUS,
    HOME_CORDON,
    HOME_DEVICE,
    HOME_FOG,
    HOME_GATEWAY,
    QoS,
    home_discovery,
    home_id,
)
from gateway.fogview import DeviceView
from gateway.home.entities import (
    DEVICE_ENTITIES,
    FOG_ENTITIES,
    GATEWAY_ENTITIES,
    OFF,
    ON,
    Entity,
    FactsT,
    Value,
)
from gateway.home.facts import FogFacts, GatewayFacts

EXPIRE_SECONDS: Final = 120
"""A state that nobody has repeated for so long is none any more: no gateway is there."""

_MAKER: Final = "E2LLM"
_FOG: Final = "fog"

# A status is JSON, cleared by an empty message, in which there is no value_json.
_STATE: Final = "{{ value_json.state if value_json is defined else 'lost' }}"
_AVAILABILITY: Final = (
    "{{ 'online' if value_json is defined and value_json.state == 'ready' else 'offline' }}"
)


@dataclass(frozen=True, slots=True)
class Shown:
    """Who shows which fog, and where.

    Attributes:
        prefix: Of Home Assistant's discovery.
        gateway: Id of the gateway that does it.
        url: Of that gateway, for the link of the fog's page in Home Assistant.
        software: Its version.
    """

    site: str
    prefix: str
    gateway: str
    url: str
    software: str


@dataclass(frozen=True, slots=True)
class Thing:
    """What is retained of one thing.

    Attributes:
        discovery_topic: Where Home Assistant reads what there is.
        discovery: JSON.
        state_topic: Where it reads the values.
        state: Key of an entity to its value.
        steady: Those that do not always change a little.
    """

    discovery_topic: str
    discovery: bytes
    state_topic: str
    state: Mapping[str, Value]
    steady: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a thing lies on the bus.

    Attributes:
        status_topic: Of what it says of itself, its last will included; None: it says nothing.
        command_topic: Of its switches.
    """

    id: str
    state_topic: str
    status_topic: str | None = None
    command_topic: str | None = None


def things(shown: Shown, fog: FogFacts, gateway: GatewayFacts) -> list[Thing]:
    """Return all that this gateway shows: the fog, itself and each device."""
    site = shown.site
    about_fog: dict[str, Any] = {
        "identifiers": [_unique(site, _FOG)],
        "name": "E2LLM" if site == "local" else f"E2LLM {site}",
        "manufacturer": _MAKER,
        "model": "Fog",
        "sw_version": shown.software,
        "configuration_url": shown.url,
    }
    fog_place = _Place(_FOG, HOME_FOG.path(site))
    own_place = _Place(
        gateway_thing(shown.gateway),
        HOME_GATEWAY.path(site, gateway=shown.gateway),
        GATEWAY_STATUS.path(site, gateway=shown.gateway),
    )
    # A part of the fog, by the same identifier: its numbers are of this gateway alone.
    named = f"{shown.gateway}: "
    found = [
        _thing(shown, fog_place, about_fog, FOG_ENTITIES, fog),
        _thing(shown, own_place, about_fog, GATEWAY_ENTITIES, gateway, named),
    ]
    for device in fog.devices:
        name = device.view.id
        place = _Place(
            f"device-{home_id(name)}",
            HOME_DEVICE.path(site, device=name),
            DEVICE_STATUS.path(site, device=name),
            HOME_CORDON.path(site, device=name),
        )
        about = _about_device(site, device.view, place)
        found.append(_thing(shown, place, about, DEVICE_ENTITIES, device))
    return found


def gateway_thing(gateway: str) -> str:
    """Return the id of the thing that shows a gateway."""
    return f"gateway-{home_id(gateway)}"


def is_of_another_gateway(shown: Shown, discovery_topic: str) -> bool:
    """Return whether a discovery shows another gateway, which alone may take it back."""
    thing = discovery_topic.split("/")[-2]
    return thing.startswith("gateway-") and thing != gateway_thing(shown.gateway)


def _unique(site: str, *parts: str) -> str:
    return "-".join(["e2llm", home_id(site), *parts])


def _about_device(site: str, device: DeviceView, place: _Place) -> dict[str, Any]:
    status, profile = device.status, device.profile
    return {
        "identifiers": [_unique(site, place.id)],
        "name": device.id,
        "manufacturer": _MAKER,
        "model": (profile.hardware if profile is not None else "") or "Device",
        "sw_version": (status.software if status is not None else "") or "unknown",
        "via_device": _unique(site, _FOG),
    }


def _thing(
    shown: Shown,
    place: _Place,
    about: Mapping[str, Any],
    entities: Sequence[Entity[FactsT]],
    facts: FactsT,
    named: str = "",
) -> Thing:
    state = {each.key: each.value(facts) for each in entities if each.value is not None}
    present = [e for e in entities if not e.is_optional or state[e.key] is not None]
    message = {
        "device": about,
        "origin": {"name": _MAKER, "sw_version": shown.software},
        "components": {
            entity.key: _component(shown.site, place, entity, named) for entity in present
        },
        "qos": int(QoS.AT_LEAST_ONCE),
    }
    return Thing(
        home_discovery(shown.prefix, shown.site, place.id),
        msgspec.json.encode(message),
        place.state_topic,
        state,
        _steady(entities, state),
    )


def _steady(entities: Iterable[Entity[Any]], state: Mapping[str, Value]) -> dict[str, Value]:
    measured = {entity.key for entity in entities if entity.is_measured}
    return {key: value for key, value in state.items() if key not in measured}


def _component(site: str, place: _Place, entity: Entity[Any], named: str) -> dict[str, Any]:
    common = {
        "platform": entity.platform,
        "name": f"{named}{entity.name}",
        "unique_id": _unique(site, place.id, entity.key),
        **entity.config,
    }
    if entity.value is None:
        return {**common, "state_topic": place.status_topic, "value_template": _STATE}
    common |= {
        "state_topic": place.state_topic,
        "value_template": f"{{{{ value_json.{entity.key} }}}}",
    }
    if place.status_topic is not None:
        common["availability"] = [{"topic": place.status_topic, "value_template": _AVAILABILITY}]
    if entity.platform == "switch":
        ends = {"payload_on": ON, "payload_off": OFF, "state_on": ON, "state_off": OFF}
        return {**common, "command_topic": place.command_topic, **ends}
    return {**common, "expire_after": EXPIRE_SECONDS}
