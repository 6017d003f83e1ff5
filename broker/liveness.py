"""When devices were last heard of. Pure.

A frozen process and a pulled plug leave connections open: the broker publishes the last will
only after one and a half times the keep-alive. Telemetry comes every few seconds, so its
absence says it sooner, and what nodes say of requests counts as well.
"""

from __future__ import annotations

from typing import Final

SILENT_SECONDS: Final = 3.5
"""Shortest silence that means something."""
MISSED_REPORTS: Final = 1.75
"""Silence in usual gaps between two reports of the device."""
_WEIGHT: Final = 0.25
_LONGEST_GAP: Final = 60.0


class Liveness:
    """What was heard of each device.

    Args:
        least_seconds: Shortest silence that means something.
        missed_reports: Silence in usual gaps between two reports of the device.
    """

    def __init__(
        self, least_seconds: float = SILENT_SECONDS, missed_reports: float = MISSED_REPORTS
    ) -> None:
        self._least_seconds = least_seconds
        self._missed_reports = missed_reports
        self._heard: dict[str, float] = {}
        self._reported: dict[str, float] = {}
        self._gaps: dict[str, float] = {}

    def heard(self, device: str, now: float) -> None:
        """A device said something, of itself or of a request."""
        self._heard[device] = max(now, self._heard.get(device, now))

    def reported(self, device: str, now: float) -> None:
        """A device reported, as it does from time to time."""
        before = self._reported.get(device)
        if before is not None:
            # What follows a silence is no usual gap.
            gap = min(now - before, _LONGEST_GAP)
            known = self._gaps.get(device)
            if known is None or gap <= 3 * known:
                self._gaps[device] = gap if known is None else known + _WEIGHT * (gap - known)
        self._reported[device] = now
        self.heard(device, now)

    def excuse(self, until: float) -> None:
        """Nothing that devices leave unsaid before ``until`` counts, whatever the reason."""
        self._reported.clear()
        for device, heard in self._heard.items():
            self._heard[device] = max(heard, until)

    def silent_seconds(self, device: str, now: float) -> float | None:
        """Return for how long a device has been silent, if that is longer than usual.

        None also for one whose reports have no usual gap yet.
        """
        gap, heard = self._gaps.get(device), self._heard.get(device)
        if gap is None or heard is None:
            return None
        silence = now - heard
        return silence if silence >= max(self._least_seconds, self._missed_reports * gap) else None
