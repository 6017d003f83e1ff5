"""``fog.toml``: which devices a local fog has. Text in, frozen values out.

Every error names file, line and key, says what was expected, and for an unknown key
which known one is nearest. Nothing here starts or measures anything.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from broker.credentials import HOME_ASSISTANT_USER
from broker.topics import InvalidTopicLevelError, check_level
from fog.owners import OWNER_KEYS, OwnerConfig, read_owner
from fog.quantities import (
    Memory,
    parse_bytes_per_second,
    parse_flops,
    parse_memory,
    parse_seconds,
    suggest,
)
from fog.settable import Settable
from fog.tomllines import KeyPath
from fog.tomlreader import Missing, TomlReader, parse_toml, read_text

DEFAULT_FOG: Final = Path(__file__).parent / "fog.toml"

GATEWAY_ID: Final = "gateway"
CLIENT_ID: Final = "app"
"""User of the broker for a person's own programs: inference over MQTT."""
RESERVED_IDS: Final = frozenset(
    {"planner", GATEWAY_ID, CLIENT_ID, HOME_ASSISTANT_USER, "broker", "redis"}
)
"""Names that are broker users or log prefixes of something else than a device."""

CORES_SHARE: Final = 0.6
"""Sum of 1/slowdown that one core carries; 1.2 on two cores (design, section 7)."""

_DEVICE_KEYS: Final = (
    "id",
    "slowdown",
    "model_memory",
    "link_delay",
    "link_rate",
    "catalogue",
    "compute",
    "memory_rate",
    *OWNER_KEYS,
)
_DEVICE_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class DeviceRates:
    """What a language model reaches on a device that nobody can measure yet."""

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """One device: emulated, or one that can only be planned and simulated.

    Attributes:
        id: Name of the device; also its broker user and its log prefix.
        slowdown: How many times slower than this machine it is; at least 1.
        model_memory: Memory that it offers to the model; None, for a device of the catalogue
            alone: what the catalogue says.
        link_delay_seconds: One-way delay of its link; None: not emulated.
        link_bytes_per_second: Rate of its link; None: not emulated.
        catalogue: Name of a device of `planner.catalogue` that it is; None: it is not.
        rates: Its own numbers, where the catalogue has none.
        owner: What its owner allows.
    """

    id: str
    slowdown: float
    model_memory: Memory | None
    link_delay_seconds: float | None = None
    link_bytes_per_second: float | None = None
    catalogue: str | None = None
    rates: DeviceRates | None = None
    owner: OwnerConfig = field(default_factory=OwnerConfig)

    @property
    def is_emulated(self) -> bool:
        """Whether a process on this machine can stand for it."""
        return self.catalogue is None and self.rates is None


@dataclass(frozen=True, slots=True, kw_only=True)
class FogConfig:
    """A whole fog.

    Attributes:
        planner: Settings of the planner by name, as text; as environment variables have it.
        gateway: The same for the gateway.
    """

    path: Path
    devices: tuple[DeviceConfig, ...]
    site: str = "local"
    planner: Mapping[str, str] = field(default_factory=dict)
    gateway: Mapping[str, str] = field(default_factory=dict)

    @property
    def demand(self) -> float:
        """Share of this machine that all devices ask for together when busy, in cores."""
        return sum(1 / device.slowdown for device in self.devices)


def load_config(
    path: Path,
    *,
    planner: Settable | None = None,
    gateway: Settable | None = None,
    catalogue: Collection[str] = (),
) -> FogConfig:
    """Read and check a fog file.

    Args:
        path: The file.
        planner: Checks the table ``[planner]``; None: any scalar goes.
        gateway: Checks the table ``[gateway]``; None: any scalar goes.
        catalogue: Devices that ``catalogue`` may name; empty where devices are emulated.

    Raises:
        ConfigError: The file cannot be read, is not TOML, or says something impossible.
    """
    return parse_config(
        read_text(path), path, planner=planner, gateway=gateway, catalogue=catalogue
    )


def parse_config(
    text: str,
    path: Path,
    *,
    planner: Settable | None = None,
    gateway: Settable | None = None,
    catalogue: Collection[str] = (),
) -> FogConfig:
    """Parse the text of a fog file; see `load_config`."""
    reader, values = parse_toml(text, path)
    reader.check_keys((), values, ("site", "planner", "gateway", "device"))
    site = reader.read((), values, "site", _parse_level, default="local")
    raw_devices = values.get("device", [])
    if not isinstance(raw_devices, list) or not all(isinstance(d, dict) for d in raw_devices):
        reader.fail(("device",), "write each device as its own [[device]] table")
    if not raw_devices:
        reader.fail((), "has no device; add at least one [[device]] table")
    devices = tuple(
        _device(reader, number, raw, catalogue) for number, raw in enumerate(raw_devices)
    )
    seen: dict[str, int] = {}
    for number, device in enumerate(devices):
        if device.id in seen:
            first = reader.index.line(("device", seen[device.id], "id"))
            reader.fail(
                ("device", number, "id"),
                f"{device.id!r} is already the device of line {first}; ids must differ",
            )
        seen[device.id] = number
    return FogConfig(
        path=path,
        site=site,
        devices=devices,
        planner=_settings(reader, values, "planner", planner),
        gateway=_settings(reader, values, "gateway", gateway),
    )


def demand_warning(config: FogConfig, num_cores: int) -> str | None:
    """Return a warning when the fog asks for more than this machine can emulate on time."""
    limit = CORES_SHARE * num_cores
    if config.demand <= limit + 1e-9:
        return None
    return (
        f"{config.path.name} asks for more than this machine has: the sum of 1/slowdown is "
        f"{config.demand:.2f}, at most {limit:.2f} run on time on {num_cores} cores. Steps will "
        f"come late. Raise the slowdowns by {config.demand / limit:.1f} times or use fewer devices."
    )


def _device(
    reader: TomlReader, number: int, raw: dict[str, Any], catalogue: Collection[str]
) -> DeviceConfig:
    at: KeyPath = ("device", number)
    reader.check_keys(at, raw, _DEVICE_KEYS)
    only_planned = [key for key in ("catalogue", "compute", "memory_rate") if key in raw]
    if only_planned and not catalogue:
        reader.fail(
            (*at, only_planned[0]),
            "a device by data sheet can be planned and simulated (`e2llm simulate --fog`, "
            "`e2llm plan --fog`), not emulated; give it a slowdown instead",
        )
    named = reader.read(at, raw, "catalogue", _one_of(catalogue), default=None)
    return DeviceConfig(
        id=reader.read(at, raw, "id", parse_device_id),
        slowdown=reader.read(at, raw, "slowdown", _parse_slowdown, default=1.0),
        model_memory=reader.read(
            at, raw, "model_memory", parse_memory, default=Missing if named is None else None
        ),
        link_delay_seconds=reader.read(at, raw, "link_delay", parse_seconds, default=None),
        link_bytes_per_second=reader.read(
            at, raw, "link_rate", parse_bytes_per_second, default=None
        ),
        catalogue=named,
        rates=_rates(reader, at, raw),
        owner=read_owner(reader, at, raw),
    )


def _rates(reader: TomlReader, at: KeyPath, raw: dict[str, Any]) -> DeviceRates | None:
    given = [key for key in ("compute", "memory_rate") if key in raw]
    if not given:
        return None
    if "catalogue" in raw:
        reader.fail((*at, given[0]), "the catalogue says that already; write one or the other")
    return DeviceRates(
        reader.read(at, raw, "compute", parse_flops),
        reader.read(at, raw, "memory_rate", parse_bytes_per_second),
    )


def _settings(
    reader: TomlReader, values: dict[str, Any], name: str, settable: Settable | None
) -> dict[str, str]:
    raw = values.get(name, {})
    if not isinstance(raw, dict):
        reader.fail((name,), f"write the settings of the {name} as a table [{name}]")
    if settable is not None:
        reader.check_keys((name,), raw, tuple(settable.names))
    settings = {key: reader.read((name,), raw, key, _parse_scalar) for key in raw}
    if settable is not None and (problem := settable.problem(settings)):
        # The process names the variable, or the field, or neither: then the one without
        # which nothing is wrong is to blame.
        named = [
            key
            for key in settings
            if re.search(rf"\b({key}|{settable.prefix}{key.upper()})\b", problem)
        ] or [
            key
            for key in settings
            if settable.problem({k: v for k, v in settings.items() if k != key}) is None
        ]
        reader.fail((name, *named[:1]), problem)
    return settings


def _parse_level(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"must be text, not {value!r}")
    try:
        return check_level(value)
    except InvalidTopicLevelError as error:
        raise ValueError(str(error)) from error


def parse_device_id(value: object) -> str:
    """Return a name that a device may have; `ValueError` says what is wrong with another."""
    if not isinstance(value, str) or not _DEVICE_ID.fullmatch(value):
        raise ValueError(
            f"{value!r} cannot name a device: letters, digits, '.', '_' and '-', "
            "starting with a letter or digit, at most 64"
        )
    if value in RESERVED_IDS:
        raise ValueError(
            f"{value!r} is the name of another part of the fog; choose a different one"
        )
    return value


def _one_of(names: Collection[str]) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if not isinstance(value, str) or value not in names:
            raise ValueError(
                f"no such device in the catalogue: {value!r}{suggest(str(value), list(names))}"
            )
        return value

    return parse


def _parse_slowdown(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be a number such as 4 or 2.5, not {value!r}")
    if not 1 <= value < float("inf"):
        raise ValueError(
            f"must be at least 1, not {value}: an emulated device can only be slower than "
            "this machine (4 means four times slower)"
        )
    return float(value)


def _parse_scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError(f"must be a number, text, true or false, not {value!r}")
