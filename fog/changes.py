"""What could happen to a fog: ``--add``, ``--lose``, ``--link`` as values. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fog.config import DeviceConfig, FogConfig, parse_device_id
from fog.quantities import parse_bytes_per_second, parse_seconds, suggest

_TIME: Final = re.compile(r"([0-9.]+)\s*(s|min|h)")
_MINUTES: Final = {"s": 1.0, "min": 60.0, "h": 3600.0}


class ChangeError(ValueError):
    """A change is written wrongly, or names a device that is not there."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A device stops."""

    device: str
    at_seconds: float


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between before and after.

    Attributes:
        losses: In the order of time.
    """

    added: tuple[DeviceConfig, ...] = ()
    links: tuple[DeviceConfig, ...] = ()
    losses: tuple[Loss, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.links or self.losses)

    def apply(self, devices: Sequence[DeviceConfig]) -> tuple[DeviceConfig, ...]:
        """Return the devices with those that are added and the links that change."""
        changed = {device.id: device for device in self.links}
        known = [changed.get(device.id, device) for device in devices]
        return (*known, *(changed.get(device.id, device) for device in self.added))

    def texts(self) -> list[str]:
        """Return the changes in words."""
        return [
            *(f"{d.id} ({d.catalogue}) is added" for d in self.added),
            *(f"the link of {d.id} changes" for d in self.links),
            *(f"{loss.device} is lost after {loss.at_seconds:g} s" for loss in self.losses),
        ]


def parse_changes(
    config: FogConfig,
    catalogue: Collection[str],
    add: Sequence[str] = (),
    link: Sequence[str] = (),
    lose: Sequence[str] = (),
) -> Changes:
    """Return what the options say.

    Raises:
        ChangeError: Names the option and what is wrong with it.
    """
    devices = {device.id: device for device in config.devices}
    added = []
    for text in add:
        device = _added(text, catalogue)
        if device.id in devices:
            raise ChangeError(f"--add {text}: there is a device {device.id!r} already")
        devices[device.id] = device
        added.append(device)
    links = []
    for text in link:
        device = _linked(text, devices)
        devices[device.id] = device
        links.append(device)
    losses = [_lost(text, devices) for text in lose]
    return Changes(tuple(added), tuple(links), tuple(sorted(losses, key=lambda x: x.at_seconds)))


def _added(text: str, catalogue: Collection[str]) -> DeviceConfig:
    device_id, colon, name = text.partition(":")
    if not colon:
        raise ChangeError(f"--add {text}: write ID:CATALOGUE-DEVICE, as in pi:raspberry-pi-5-8gb")
    if name not in catalogue:
        raise ChangeError(
            f"--add {text}: no device {name!r} in the catalogue{suggest(name, list(catalogue))}"
        )
    try:
        parse_device_id(device_id)
    except ValueError as error:
        raise ChangeError(f"--add {text}: {error}") from error
    return DeviceConfig(id=device_id, slowdown=1.0, model_memory=None, catalogue=name)


def _linked(text: str, devices: dict[str, DeviceConfig]) -> DeviceConfig:
    device_id, _, quantities = text.partition(":")
    device = _known("link", text, device_id, devices)
    parts = [part.strip() for part in quantities.split(",") if part.strip()]
    if not 1 <= len(parts) <= 2:
        raise ChangeError(f"--link {text}: write ID:DELAY,RATE, as in pi:20ms,50Mbit/s")
    for part in parts:
        try:
            if part.endswith("/s"):
                device = replace(device, link_bytes_per_second=parse_bytes_per_second(part))
            else:
                device = replace(device, link_delay_seconds=parse_seconds(part))
        except ValueError as error:
            raise ChangeError(f"--link {text}: {error}") from error
    return device


def _lost(text: str, devices: dict[str, DeviceConfig]) -> Loss:
    device_id, _, when = text.partition("@")
    device = _known("lose", text, device_id, devices)
    found = _TIME.fullmatch(when)
    if found is None or found[1].count(".") > 1 or found[1] == ".":
        raise ChangeError(f"--lose {text}: write ID@TIME, as in pi@300s or pi@5min")
    return Loss(device.id, float(found[1]) * _MINUTES[found[2]])


def _known(
    option: str, text: str, device_id: str, devices: dict[str, DeviceConfig]
) -> DeviceConfig:
    if device_id not in devices:
        raise ChangeError(
            f"--{option} {text}: no device {device_id!r}{suggest(device_id, list(devices))}"
        )
    return devices[device_id]
