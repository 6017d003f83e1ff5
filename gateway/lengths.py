"""What requests show of themselves and of the bus, told to the planner now and then. Pure."""

from __future__ import annotations

from typing import Final

from broker.control import MeasuredLengths
from gateway.measures import Measures

INTERVAL_SECONDS: Final = 5.0


class LengthsNews:
    """Lengths as the gateway's status says them.

    Attributes:
        told: What it says now; None: too few requests lately.
        hop_overhead_seconds: The same of hops.
    """

    def __init__(self, measures: Measures) -> None:
        self.told: MeasuredLengths | None = None
        self.hop_overhead_seconds: float | None = None
        self._measures = measures
        self._looked_seconds = 0.0

    def look(self, now: float) -> bool:
        """Look at what was measured, and return whether there is something to tell."""
        if now - self._looked_seconds < INTERVAL_SECONDS:
            return False
        self._looked_seconds = now
        before = self.told, self.hop_overhead_seconds
        self.told = self._measures.lengths(now)
        self.hop_overhead_seconds = self._measures.hop_overhead_seconds
        return (self.told, self.hop_overhead_seconds) != before
