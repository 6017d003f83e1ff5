"""How fast the device is now, also while it has nothing to compute. Pure.

A device that has become slow gets no work any more, and then nothing would show that it is
fast again. So it computes a little of its own now and then (`nodes.canary`), and compares that
with what it took when the device was last seen to be slow.
"""

from __future__ import annotations

from typing import Final

_SLOW: Final = 0.8
"""Nobody asks whether a device that is faster than this has recovered."""
_IDLE_SECONDS: Final = 1.0
_INTERVAL_SECONDS: Final = 5.0


class SpeedGauge:
    """Speed over the one that the device measured of itself."""

    def __init__(self) -> None:
        self._ratio = 1.0
        self._seen = 1.0
        self._busy_seconds: float | None = None
        self._probed_seconds = 0.0
        self._canary_then: float | None = None

    @property
    def ratio(self) -> float:
        """The latest estimate; 1 before there is any."""
        return self._ratio

    def computed(self, ratio: float | None, now: float) -> None:
        """Take in what recent work says; None: too little of it."""
        if ratio is None:
            return
        self._ratio = self._seen = ratio
        self._busy_seconds = now
        self._canary_then = None

    def wants_canary(self, now: float) -> bool:
        """Whether it is time to compute a little, to see if a slow device has recovered."""
        if self._busy_seconds is None or self._seen >= _SLOW:
            return False
        if self._canary_then is None:
            return now - self._busy_seconds >= _IDLE_SECONDS
        return now - self._probed_seconds >= _INTERVAL_SECONDS

    def take_canary(self, seconds: float, now: float) -> None:
        """Take in what the little computation took, in seconds of a core."""
        self._probed_seconds = now
        if self._canary_then is None:
            self._canary_then = seconds
        # Never faster than measured, on the word of so little; but work may have said so.
        self._ratio = min(self._seen * self._canary_then / seconds, max(self._seen, 1.0))
