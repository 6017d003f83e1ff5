"""What could happen to a fog: ``--add``, ``--lose``, ``--link`` as values. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from fog.config import DeviceConfig, FogConfig, parse_device_id
from fog.quantities import parse_bytes_per_second, parse_seconds, suggest

ALL: Final = "all"
"""Every device, in ``--link``, unless one has this name."""

_TIME: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]+)?)\s*(s|min|h)")
_MINUTES: Final = {"s": 1.0, "min": 60.0, "h": 3600.0}


class ChangeError(ValueError):
    """A change is written wrongly, or names a device that is not there."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A device stops."""

    device: str
    at_seconds: float


@dataclass(frozen=True, slots=True)
class Addition:
    """A device joins.

    Attributes:
        like: The device of the file or of the catalogue that it is like.
    """

    device: DeviceConfig
    like: str


@dataclass(frozen=True, slots=True)
class Changes:
    """What differs between before and after.

    Attributes:
        links: Devices with their new links, added ones too.
        link_texts: What is new about links, in words.
        losses: In the order of time.
    """

    added: tuple[Addition, ...] = ()
    links: tuple[DeviceConfig, ...] = ()
    link_texts: tuple[str, ...] = ()
    losses: tuple[Loss, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.links or self.losses)

    def apply(self, devices: Sequence[DeviceConfig]) -> tuple[DeviceConfig, ...]:
        """Return the devices with those that are added and the links that change."""
        changed = {device.id: device for device in self.links}
        all_devices = (*devices, *(addition.device for addition in self.added))
        return tuple(changed.get(device.id, device) for device in all_devices)

    def texts(self) -> list[str]:
        """Return the changes in words."""
        return [
            *(f"{entry.device.id} (like {entry.like}) is added" for entry in self.added),
            *self.link_texts,
            *(f"{loss.device} is lost at {_time_text(loss.at_seconds)}" for loss in self.losses),
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
        addition = _added(text, devices, catalogue)
        devices[addition.device.id] = addition.device
        added.append(addition)
    links: dict[str, DeviceConfig] = {}
    link_texts = []
    for text in link:
        changed, link_text = _linked(text, devices | links)
        links |= {device.id: device for device in changed}
        link_texts.append(link_text)
    losses: list[Loss] = []
    for text in lose:
        loss = _lost(text, devices)
        if any(other.device == loss.device for other in losses):
            raise ChangeError(f"--lose {text}: {loss.device} is lost already")
        losses.append(loss)
    losses.sort(key=lambda loss: loss.at_seconds)
    return Changes(tuple(added), tuple(links.values()), tuple(link_texts), tuple(losses))


def _added(text: str, devices: Mapping[str, DeviceConfig], catalogue: Collection[str]) -> Addition:
    device_id, _, like = text.partition(":")
    if not like:
        raise ChangeError(
            f"--add {text}: it has no numbers; write ID:DEVICE with a device of the catalogue "
            "(`e2llm catalogue` lists them) or of the file, as in pi:raspberry-pi-5-8gb"
        )
    try:
        parse_device_id(device_id)
    except ValueError as error:
        raise ChangeError(f"--add {text}: {error}") from error
    if device_id in devices:
        raise ChangeError(f"--add {text}: there is a device {device_id!r} already")
    if like in devices:
        return Addition(replace(devices[like], id=device_id), like)
    if like in catalogue:
        device = DeviceConfig(id=device_id, slowdown=1.0, model_memory=None, catalogue=like)
        return Addition(device, like)
    raise ChangeError(
        f"--add {text}: no device {like!r}, neither in the catalogue nor in the file"
        f"{suggest(like, [*catalogue, *devices])}"
    )


def _linked(text: str, devices: Mapping[str, DeviceConfig]) -> tuple[list[DeviceConfig], str]:
    """Return the devices with their new links, and the change in words."""
    device_id, _, quantities = text.partition(":")
    if device_id == ALL and ALL not in devices:
        wanted, whose = list(devices.values()), "every device"
    else:
        wanted, whose = [_known("link", text, device_id, devices)], device_id
    delay = rate = None
    for part in filter(None, (part.strip() for part in quantities.split(","))):
        try:
            if part.endswith("/s") and rate is None:
                rate = parse_bytes_per_second(part)
            elif not part.endswith("/s") and delay is None:
                delay = parse_seconds(part)
            else:
                raise ValueError("there is one delay and one rate")
        except ValueError as error:
            raise ChangeError(f"--link {text}: {error}") from error
    if delay is rate is None:
        raise ChangeError(f"--link {text}: write ID:DELAY,RATE, as in pi:20ms,50Mbit/s")
    changed = [
        replace(
            device,
            link_delay_seconds=device.link_delay_seconds if delay is None else delay,
            link_bytes_per_second=device.link_bytes_per_second if rate is None else rate,
        )
        for device in wanted
    ]
    parts = [] if delay is None else [f"{delay * 1e3:g} ms one way"]
    parts += [] if rate is None else [f"{rate * 8 / 1e6:g} Mbit/s"]
    return changed, f"the link of {whose} has {' and '.join(parts)}"


def _lost(text: str, devices: Mapping[str, DeviceConfig]) -> Loss:
    device_id, _, when = text.partition("@")
    device = _known("lose", text, device_id, devices)
    found = _TIME.fullmatch(when)
    if found is None:
        raise ChangeError(f"--lose {text}: write ID@TIME, as in pi@300s or pi@5min")
    return Loss(device.id, float(found[1]) * _MINUTES[found[2]])


def _known(
    option: str, text: str, device_id: str, devices: Mapping[str, DeviceConfig]
) -> DeviceConfig:
    if device_id not in devices:
        raise ChangeError(
            f"--{option} {text}: no device {device_id!r}{suggest(device_id, list(devices))}"
        )
    return devices[device_id]


def _time_text(seconds: float) -> str:
    return f"{seconds / 60:g} min" if seconds >= 60 else f"{seconds:g} s"
