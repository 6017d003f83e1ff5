"""Settings of a node, from variables that start with ``E2LLM_NODE_``. No torch, no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Final

from broker.address import BrokerAddress, listening_address
from broker.control import OwnerRules
from broker.logs import LogFormat
from broker.pinned import parse_layers
from broker.topics import check_level
from nodes.speculation import MOST_PROPOSED

PREFIX: Final = "E2LLM_NODE_"

_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z%]*)")
_UNIT_BYTES: Final = {
    "B": 1,
    **{f"{letter}B": 1000**n for n, letter in enumerate("kMGT", start=1)},
    **{f"{letter}iB": 1024**n for n, letter in enumerate("KMGT", start=1)},
}


@dataclass(frozen=True, slots=True)
class MemoryOffer:
    """Memory that a device offers to a model: exactly one of a share and bytes.

    Attributes:
        share: Part of the model's weights and planned KV; 0.6 is written ``60 %``.
        num_bytes: An absolute amount.
    """

    share: float | None = None
    num_bytes: int | None = None

    @classmethod
    def parse(cls, text: str, what: str = "memory") -> MemoryOffer:
        """Read ``60 %``, ``2 GiB`` or plain bytes; ValueError says what was expected."""
        found = _QUANTITY.fullmatch(text.strip())
        if found is None or not float(found[1]) > 0:
            raise ValueError(f'{what} {text!r} is not a share like "60 %" or a size like "2 GiB"')
        amount, unit = float(found[1]), found[2] or "B"
        if unit == "%":
            return cls(share=amount / 100)
        if unit not in _UNIT_BYTES:
            raise ValueError(f"{what} {text!r}: unknown unit; use %, {', '.join(_UNIT_BYTES)}")
        return cls(num_bytes=int(amount * _UNIT_BYTES[unit]))


def parse_share(text: str) -> float:
    """Read ``40 %``; ValueError says what was expected."""
    found = _QUANTITY.fullmatch(text.strip())
    if found is None or found[2] != "%" or not 0 < float(found[1]) <= 100:
        raise ValueError(f'share {text!r} is not a part of the device like "40 %"')
    return float(found[1]) / 100


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """Settings of one node.

    Attributes:
        id: Name of the device; also its user name at the broker.
        broker: ``mqtt://user:password@host:port``.
        memory: What the device offers to the model, as `MemoryOffer.parse` reads it; None:
            70 % of the memory that is free when it measures itself.
        slowdown: Emulate a device this many times slower than this one.
        conditions: File of `e2llm chaos` that says how much slower still it is now.
        link_delay_seconds: Emulate a link with this one-way delay to the broker.
        link_bytes_per_second: Emulate a link of this rate.
        threads: Threads that torch computes with.
        state: Folder of this device alone, for the file that a health check looks at, and
            the default of ``cache``.
        cache: Folder for measurements and fetched weights; nodes of one host share it.
        cache_limit: What fetched weights may take on disk, as bytes or a share of what is
            free, like ``8 GiB`` or ``50 %``; those used least lately go first.
        serve: Hand weights on to other nodes: address to listen on, as ``0.0.0.0:8090``; port 0
            is any free one. None: they get nothing from here.
        serve_url: Under which others reach that; follows from ``serve`` and the way to the broker.
        metrics: Address to tell Prometheus metrics at, as ``127.0.0.1:9108``. None: nowhere.
        speculation: Ids that a step carries for one request beyond its own, at most, and that
            are kept if the model would have chosen them; 0: none.
        telemetry_seconds: Interval of telemetry.
        idle_watts: Power that the device draws while it waits; for planning with energy.
        busy_watts: Power that it draws while it computes.
        share: Part of the device that is used at most, as ``40 %``: of its cores' time, and of
            its memory where ``memory`` says nothing.
        quiet_hours: Local time in which the device is left alone, as ``22:00-07:00``.
        phases: ``prefill`` or ``decode``, when the device may do only one of them.
        text: Whether the device may have embedding or head, and so see what is asked and
            answered.
        layers: The only layers that the device may hold, first and last, as ``0-3``.
    """

    id: str
    broker: str = field(repr=False)
    site: str = "local"
    log: str = "info"
    log_format: LogFormat = LogFormat.TEXT
    memory: str | None = None
    slowdown: float = 1.0
    conditions: Path | None = None
    link_delay_seconds: float = 0.0
    link_bytes_per_second: float | None = None
    threads: int = 1
    state: Path | None = None
    cache: Path | None = None
    cache_limit: str = "50 %"
    serve: str | None = None
    serve_url: str | None = None
    metrics: str | None = None
    speculation: int = MOST_PROPOSED
    telemetry_seconds: float = 2.0
    idle_watts: float | None = None
    busy_watts: float | None = None
    share: str | None = None
    quiet_hours: str | None = None
    phases: str = "prefill,decode"
    text: bool = True
    layers: str | None = None

    def __post_init__(self) -> None:
        # Checks what it is made of.
        _ = self.owner(0)
        check_level(self.id)
        check_level(self.site)
        user = BrokerAddress.parse(self.broker).username
        if user is not None and user != self.id:
            raise ValueError(
                f"broker user {user!r} is not the device id {self.id!r}; the broker lets a "
                "device speak only under its own name, so use the device's own credential"
            )
        if self.memory is not None:
            MemoryOffer.parse(self.memory)
        MemoryOffer.parse(self.cache_limit, "cache_limit")
        if self.serve is not None:
            listening_address(self.serve, "serve")
        elif self.serve_url is not None:
            raise ValueError("serve_url without serve: nobody would answer there")
        if self.metrics is not None:
            listening_address(self.metrics, "metrics")
        if not self.slowdown >= 1:
            raise ValueError(f"slowdown is {self.slowdown}; it must be at least 1")
        if not self.link_delay_seconds >= 0:
            raise ValueError(f"link_delay_seconds is {self.link_delay_seconds}; at least 0")
        if self.link_bytes_per_second is not None and not self.link_bytes_per_second > 0:
            raise ValueError(f"link_bytes_per_second is {self.link_bytes_per_second}; more than 0")
        if not 0 <= self.speculation <= 64:
            raise ValueError(f"speculation is {self.speculation}; from 0 to 64")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}; at least 1")
        if not self.telemetry_seconds > 0:
            raise ValueError(f"telemetry_seconds is {self.telemetry_seconds}; more than 0")
        idle, busy = self.idle_watts, self.busy_watts
        if (idle is None) != (busy is None) or (
            idle is not None and busy is not None and not 0 <= idle <= busy < inf
        ):
            raise ValueError("power needs both idle_watts and busy_watts, 0 <= idle <= busy")

    @property
    def address(self) -> BrokerAddress:
        """Broker and credential."""
        return BrokerAddress.parse(self.broker)

    @property
    def offer(self) -> MemoryOffer | None:
        """``memory``, parsed."""
        return None if self.memory is None else MemoryOffer.parse(self.memory)

    def owner(self, utc_offset_seconds: int) -> OwnerRules:
        """Return what the owner allows, for the planner."""
        return OwnerRules(
            share=1.0 if self.share is None else parse_share(self.share),
            quiet_hours=self.quiet_hours,
            utc_offset_seconds=utc_offset_seconds,
            phases=[phase.strip() for phase in self.phases.split(",")],
            text=self.text,
            layers=None if self.layers is None else parse_layers(self.layers),
        )

    def cache_limit_bytes(self, available_bytes: int) -> int:
        """Return what fetched weights may take, given what is free and what they take now."""
        limit = MemoryOffer.parse(self.cache_limit, "cache_limit")
        if limit.num_bytes is not None:
            return limit.num_bytes
        assert limit.share is not None, "one of the two"
        return int(limit.share * available_bytes)

    def cache_folder(self, home: Path) -> Path:
        """Return the folder to cache in, given the user's cache folder."""
        if self.cache is not None:
            return self.cache
        return self.state / "cache" if self.state is not None else home / "e2llm"
