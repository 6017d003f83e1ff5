"""What requests show of themselves and of the bus, told to the planner now and then. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker.control import MeasuredLengths
from gateway.measures import Measures

INTERVAL_SECONDS: Final = 5.0


class LengthsNews:
    """Lengths as the gateway's status says them.

    Attributes:
        told: What it says now; None: too few requests lately.
        hop_overhead_seconds: The same of hops.
        asked: About how many requests came for each of several models.
    """

    def __init__(self) -> None:
        self.told: MeasuredLengths | None = None
        self.hop_overhead_seconds: float | None = None
        self.asked: dict[str, int] = {}
        self._looked_seconds = 0.0

    def look(
        self, measures: Measures, asked: Callable[[float], dict[str, int]], now: float
    ) -> bool:
        """Look at what was measured, and return whether there is something to tell."""
        if now - self._looked_seconds < INTERVAL_SECONDS:
            return False
        self._looked_seconds = now
        before = self.told, self.hop_overhead_seconds, self.asked
        self.told = measures.lengths(now)
        self.hop_overhead_seconds = measures.hop_overhead_seconds
        self.asked = asked(now)
        return (self.told, self.hop_overhead_seconds, self.asked) != before
