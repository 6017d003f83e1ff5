"""What the parts of `benchmarks.live` share: a folder, the default fog, and what is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from benchmarks.live_fog import LiveFog
from benchmarks.live_load import MAX_TOKENS, short_jobs
from fog.chaos.load import Job
from fog.config import DEFAULT_FOG, DeviceConfig, FogConfig, load_config

PROMPT_TOKENS: Final = 24
"""About what a question of the load has."""


class Lab:
    """Where fogs are run, one after the other.

    Args:
        folder: Devices that have measured themselves once find that here again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._jobs: list[Job] = []

    def jobs(self, fog: LiveFog) -> list[Job]:
        """Return the questions of the load, with their undisturbed answers."""
        self._jobs = self._jobs or short_jobs(fog.client)
        return self._jobs


def default_fog(*changes: DeviceConfig, **planner: str) -> FogConfig:
    """Return the fog of `e2llm up`, planned for the lengths of the load.

    Args:
        changes: Devices in place of those of the same name.
        planner: Further settings of the planner.
    """
    config = load_config(DEFAULT_FOG)
    changed = {device.id: device for device in changes}
    settings = {"prompt_tokens": str(PROMPT_TOKENS), "answer_tokens": str(MAX_TOKENS), **planner}
    devices = tuple(changed.get(device.id, device) for device in config.devices)
    return replace(config, devices=devices, planner=settings)


def device_of(config: FogConfig, name: str) -> DeviceConfig:
    """Return a device by its name."""
    return next(device for device in config.devices if device.id == name)


@dataclass(frozen=True, slots=True)
class Promise:
    """What must hold, and whether it does."""

    what: str
    value: float
    limit: float
    is_kept: bool


@dataclass
class Found:
    """Figures of one part, and its promises."""

    figures: dict[str, Any] = field(default_factory=dict)
    promises: list[Promise] = field(default_factory=list)

    def at_most(self, what: str, value: float, limit: float) -> None:
        """Something must not be more."""
        self.promises.append(Promise(what, round(value, 3), limit, value <= limit))

    def at_least(self, what: str, value: float, limit: float) -> None:
        """Something must not be less."""
        self.promises.append(Promise(what, round(value, 3), limit, value >= limit))

    def answers(self, findings: Mapping[str, int]) -> None:
        """Note what became of the requests: none may be lost or wrong."""
        for name in ("lost", "wrong"):
            self.at_most(f"requests {name} of {findings['requests']}", findings[name], 0)
        for name, count in findings.items():
            self.figures[name] = self.figures.get(name, 0) + count

    def processes(self, fog: LiveFog) -> None:
        """Note what became of the processes: none may end by itself."""
        ended = fog.ended()
        self.at_most(f"processes that ended {' '.join(ended)}".strip(), len(ended), 0)

    @property
    def is_kept(self) -> bool:
        """Whether all promises are."""
        return all(promise.is_kept for promise in self.promises)

    def text(self) -> str:
        """Return lines for a person."""
        lines = [f"  {name}: {value}" for name, value in self.figures.items()]
        for each in self.promises:
            mark = "kept  " if each.is_kept else "BROKEN"
            lines.append(f"  {mark} {each.what}: {each.value:g} (limit {each.limit:g})")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return all as JSON."""
        return {"figures": self.figures, "promises": [asdict(each) for each in self.promises]}
