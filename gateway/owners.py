"""What owners ask of their devices, from HTTP to the bus. Pure."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec.structs import replace

from broker.codec import encode_control
from broker.control import DeviceControl, OwnerRules, Placement
from broker.pinned import parse_layers
from broker.topics import DEVICE_CONTROL
from broker.transport import Publication

VERBS: Final = {
    "cordon": Placement.CORDONED,
    "drain": Placement.DRAINING,
    "uncordon": Placement.OPEN,
}
"""What may be asked, and what becomes of the device's placement."""


class UnknownDeviceError(Exception):
    """No device of that name has ever said anything; the message names it."""


class WrongRulesError(ValueError):
    """What an owner asks for makes no sense; the message says why."""


def parse_rules(body: bytes, utc_offset_seconds: int) -> OwnerRules | None:
    """Return the rules in a JSON body; None for ``null``: those of the device itself.

    Args:
        body: Its ``layers`` may be a text like ``0-3``, as everywhere else that owners write them.
        utc_offset_seconds: Of the device, for quiet hours of a body that does not say it.

    Raises:
        WrongRulesError: It is something else, or the share is not 1: only the device itself can
            keep to a share.
    """
    try:
        values = msgspec.json.decode(body)
        if values is None:
            return None
        if isinstance(values, dict):
            values = _as_written(values, utc_offset_seconds)
        rules = msgspec.convert(values, OwnerRules)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WrongRulesError(f"not the rules of an owner: {error}") from error
    if unknown := sorted(set(values) - set(OwnerRules.__struct_fields__)):
        raise WrongRulesError(f"unknown rules: {', '.join(unknown)}")
    return rules


def _as_written(values: dict[str, Any], utc_offset_seconds: int) -> dict[str, Any]:
    """Return the rules of a body with what people write turned into what the bus has."""
    if values.get("share", 1) != 1:
        raise WrongRulesError("a share is kept by the device itself: set E2LLM_NODE_SHARE there")
    layers = values.get("layers")
    if isinstance(layers, str):
        try:
            layers = parse_layers(layers)
        except ValueError as error:
            raise WrongRulesError(f"not the rules of an owner: {error}") from error
    return {"utc_offset_seconds": utc_offset_seconds, **values, "layers": layers}


def placed(known: DeviceControl, verb: str, utc_seconds: float) -> DeviceControl:
    """Return what is asked of a device after a verb of `VERBS`."""
    return replace(known, placement=VERBS[verb], at=utc_seconds)


def cordon_switched(known: DeviceControl, is_on: bool, utc_seconds: float) -> DeviceControl:
    """Return what is asked of a device after the switch of its cordon; it is on in a drain too."""
    if is_on and known.placement is not Placement.OPEN:
        return known
    return placed(known, "cordon" if is_on else "uncordon", utc_seconds)


def removed(known: DeviceControl, utc_seconds: float) -> DeviceControl:
    """Return what is asked of a device that does not come back."""
    return replace(known, placement=Placement.REMOVED, at=utc_seconds)


def back(known: DeviceControl) -> DeviceControl | None:
    """Return what is asked of a device that joins again: nothing, if it was removed before."""
    return None if known.placement is Placement.REMOVED else known


def control_publication(site: str, device: str, control: DeviceControl | None) -> Publication:
    """Return what tells the planner; None: nothing is asked any more."""
    topic = DEVICE_CONTROL
    content = b"" if control is None else encode_control(control)
    return Publication(topic.path(site, device=device), content, topic.qos, topic.retained)


def control_body(device: str, control: DeviceControl | None) -> dict[str, Any]:
    """Return the answer to whoever asked."""
    return {"id": device, **msgspec.to_builtins(control or DeviceControl())}
