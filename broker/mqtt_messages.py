"""Our messages in paho's form, for `broker.mqtt`."""

from __future__ import annotations

from typing import Any, Final

from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties as PahoProperties

from broker.transport import NO_PROPERTIES, Properties, Publication, Received

_NAMES: Final = {
    "response_topic": "ResponseTopic",
    "correlation": "CorrelationData",
    "expiry_seconds": "MessageExpiryInterval",
}
_TRACEPARENT: Final = "traceparent"


def arguments(message: Publication) -> tuple[str, bytes | bytearray, int, bool]:
    """Return what paho's ``publish`` and ``will_set`` take first."""
    return message.topic, message.payload, int(message.qos), message.retained


def to_paho(properties: Properties) -> PahoProperties | None:
    """Return what to publish with under MQTT 5; None without a property: paho's are slow."""
    if properties == NO_PROPERTIES:
        return None
    found = PahoProperties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]  # paho's gap
    for ours, theirs in _NAMES.items():
        value = getattr(properties, ours)
        if value is not None:
            setattr(found, theirs, value)
    if properties.traceparent is not None:
        found.UserProperty = (_TRACEPARENT, properties.traceparent)
    return found


def received(message: MQTTMessage) -> Received:
    """Return what has arrived; `UnicodeDecodeError` if its topic is no text."""
    return Received(
        message.topic, bytes(message.payload), message.retain, _from_paho(message.properties)
    )


def _from_paho(properties: Any) -> Properties:
    """Return the properties of a message; under MQTT 3.1.1 there are None."""
    found = {ours: getattr(properties, theirs, None) for ours, theirs in _NAMES.items()}
    # The last of several of one name: MQTT 5 allows them and gives them no meaning.
    found["traceparent"] = dict(getattr(properties, "UserProperty", ())).get(_TRACEPARENT)
    return Properties(**found) if any(v is not None for v in found.values()) else NO_PROPERTIES
