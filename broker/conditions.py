"""What devices of a local testbed suffer now: one JSON file that `e2llm chaos` writes.

Relays of connections (`fog.chaos.wires`) and emulated nodes look at it a few times a second.
A device that is not in it, and a file that is not there, are well.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from broker.credentials import write_private

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Condition:
    """What one device suffers.

    Attributes:
        cut: Nothing passes its link, and neither end is told.
        link_bytes_per_second: What its link lets through each way; None: as much as usual.
        slowdown: How many times slower than usual it computes.
    """

    cut: bool = False
    link_bytes_per_second: float | None = None
    slowdown: float = 1.0

    @property
    def is_well(self) -> bool:
        """Whether it suffers nothing."""
        return self == _WELL


_WELL: Final = Condition()


def write_conditions(path: Path, conditions: Mapping[str, Condition]) -> None:
    """Replace the file in one step, so that nobody reads half of it."""
    text = json.dumps({name: asdict(c) for name, c in conditions.items() if not c.is_well})
    write_private(path, text + "\n")


class ConditionsFile:
    """Reads the file again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._conditions: dict[str, Condition] = {}

    def of(self, device: str) -> Condition:
        """Return the condition of one device."""
        return self.read().get(device, _WELL)

    def read(self) -> Mapping[str, Condition]:
        """Return the conditions by device; those before when the file cannot be understood."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            self._stamp, self._conditions = None, {}
            return self._conditions
        stamp = (stat.st_mtime_ns, stat.st_ino)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                raw: dict[str, dict[str, Any]] = json.loads(self._path.read_bytes())
                self._conditions = {name: Condition(**fields) for name, fields in raw.items()}
            except (ValueError, TypeError, AttributeError):
                logger.error("%s does not say what devices suffer", self._path)
        return self._conditions
