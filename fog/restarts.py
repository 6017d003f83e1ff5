"""When a child that ended is started again, and when that is pointless. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

REFUSED_SETTINGS: Final = 2
"""Exit code of a process that was started wrongly; starting it again changes nothing."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """Back-off of restarts.

    Attributes:
        first_seconds: Delay before the first restart; it doubles with every further crash.
        largest_seconds: The delay never grows beyond this.
        healthy_seconds: Whoever ran this long starts counting its crashes anew.
        early_crashes: Crashes in a row after which a fog that never was ready gives up.
            A fog that has been ready never does: devices come back.
    """

    first_seconds: float = 0.5
    largest_seconds: float = 15.0
    healthy_seconds: float = 30.0
    early_crashes: int = 3

    def count(self, crashes_before: int, uptime_seconds: float) -> int:
        """Return the crashes in a row, this one included."""
        return 1 if uptime_seconds >= self.healthy_seconds else crashes_before + 1

    def delay_seconds(self, crashes: int, exit_code: int, *, fog_was_ready: bool) -> float | None:
        """Return how long to wait before the restart; None: do not restart, give up."""
        if not fog_was_ready and (crashes >= self.early_crashes or exit_code == REFUSED_SETTINGS):
            return None
        return float(min(self.first_seconds * 2 ** min(crashes - 1, 30), self.largest_seconds))
