"""What owners allow, as ``fog.toml`` says it; from text to what nodes and planner read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from broker.control import OwnerRules
from broker.pinned import parse_layers
from broker.quiet import parse_quiet_hours
from fog.tomllines import KeyPath
from fog.tomlreader import TomlReader

OWNER_KEYS: Final = ("share", "quiet_hours", "phases", "text", "layers")


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
        from nodes.settings import parse_share

        return OwnerRules(
            share=1.0 if self.share is None else parse_share(self.share),
            phases=list(self.phases),
            text=self.text,
            layers=None if self.layers is None else parse_layers(self.layers),
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
    from nodes.settings import parse_share

    parse_share(str(value))
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
    parse_layers(str(value))
    return str(value)
