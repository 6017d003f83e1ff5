"""What owners allow, as ``fog.toml`` says it; from text to what nodes and planner read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from broker.control import OwnerRules
from broker.quiet import parse_quiet_hours
from fog.tomllines import KeyPath
from fog.tomlreader import TomlReader

OWNER_KEYS: Final = ("share", "quiet_hours", "phases", "text", "layers")

_SHARE: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*%")
_LAYERS: Final = re.compile(r"(\d+)\s*-\s*(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnerConfig:
    """What an owner allows, as written; None and the defaults where nothing is.

    Attributes:
        share: ``40 %`` of the device at most.
        quiet_hours: ``22:00-07:00``, local time.
        phases: ``prefill`` and ``decode``, or one of them.
        text: Whether it may have embedding or head.
        layers: ``0-3``, the only ones that it may hold.
    """

    share: str | None = None
    quiet_hours: str | None = None
    phases: tuple[str, ...] = ("prefill", "decode")
    text: bool = True
    layers: str | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The settings of a node that keeps to it."""
        written = {
            "E2LLM_NODE_SHARE": self.share,
            "E2LLM_NODE_QUIET_HOURS": self.quiet_hours,
            "E2LLM_NODE_PHASES": ",".join(self.phases) if len(self.phases) == 1 else None,
            "E2LLM_NODE_TEXT": None if self.text else "false",
            "E2LLM_NODE_LAYERS": self.layers,
        }
        return {name: value for name, value in written.items() if value is not None}

    @property
    def rules(self) -> OwnerRules:
        """The same for a planner without nodes: a share slows the device, hours are not asked."""
        found = None if self.layers is None else _LAYERS.fullmatch(self.layers)
        return OwnerRules(
            share=1.0 if self.share is None else float(self.share.rstrip("% ")) / 100,
            phases=list(self.phases),
            text=self.text,
            layers=None if found is None else (int(found[1]), int(found[2]) + 1),
        )


def read_owner(reader: TomlReader, at: KeyPath, raw: dict[str, Any]) -> OwnerConfig:
    """Read the keys of a device that are its owner's.

    Raises:
        ConfigError: One of them makes no sense.
    """
    return OwnerConfig(
        share=reader.read(at, raw, "share", _share, default=None),
        quiet_hours=reader.read(at, raw, "quiet_hours", _quiet_hours, default=None),
        phases=reader.read(at, raw, "phases", _phases, default=("prefill", "decode")),
        text=reader.read(at, raw, "text", _bool, default=True),
        layers=reader.read(at, raw, "layers", _layers, default=None),
    )


def _share(value: object) -> str:
    found = _SHARE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or not 0 < float(found[1]) <= 100:
        raise ValueError(f'must be a part of the device such as "40 %", not {value!r}')
    return str(value)


def _quiet_hours(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f'must be a span of local time such as "22:00-07:00", not {value!r}')
    parse_quiet_hours(value)
    return value


def _phases(value: object) -> tuple[str, ...]:
    known = ("prefill", "decode")
    if not isinstance(value, list) or not value or any(entry not in known for entry in value):
        raise ValueError(f'must be ["prefill"], ["decode"] or both, not {value!r}')
    return tuple(phase for phase in known if phase in value)


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"must be true or false, not {value!r}")
    return value


def _layers(value: object) -> str:
    found = _LAYERS.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None or int(found[2]) < int(found[1]):
        raise ValueError(f'must be a first and a last layer such as "0-3", not {value!r}')
    return str(value).strip()
