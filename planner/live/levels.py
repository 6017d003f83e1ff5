"""Noisy readings as levels that change rarely, and soon when it matters. Pure.

A reading such as a device's speed is never the same twice. The planner must neither follow
every hiccup nor take a minute to see that a device has become four times slower. So it plans
with a *level*: a number that stays until readings have been off it by more than a threshold
for long enough. How far and how long are added up, each reading counted in part only
(E. S. Page's cumulative sum, Biometrika 1954): what is four times too slow counts after
seconds, what is a third too slow after a minute, and what only swings around the level never.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import log
from statistics import median
from typing import Final

_MOST_PER_SECOND: Final = 1.0
"""Readings further off than this, in logarithms beyond the threshold, count no more."""
_FORGIVENESS: Final = 4.0
"""Readings at the level count so many times as much, so that hiccups do not add up."""
_CALM_CHANGES: Final = 4
"""So many changes within `_MEMORY_SECONDS` are taken as they come; each further one must
last twice as long, up to `_MOST_PATIENCE` times."""
_MEMORY_SECONDS: Final = 600.0
_MOST_PATIENCE: Final = 32
_MOST_STRAYS: Final = 64
_MOST_GAP_SECONDS: Final = 5.0
"""Readings further apart than this do not vouch for the time between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """When readings have left a level.

    Attributes:
        threshold: Readings may be off by this share, as 0.25, for ever.
        seconds: How long they may be off by a factor of e beyond that; less far takes longer.
    """

    threshold: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Level:
    """A quantity that is greater than 0, as the planner takes it to be.

    Attributes:
        value: What is planned with.
        above: Evidence that readings are higher, in seconds; see `Rule.seconds`.
        below: Evidence that they are lower.
        read_seconds: When the last reading was taken; None before the first.
        strays: Readings since the evidence began, oldest first.
        changes: When the level changed lately.
    """

    value: float
    above: float = 0.0
    below: float = 0.0
    read_seconds: float | None = None
    strays: tuple[float, ...] = ()
    changes: tuple[float, ...] = ()

    def after(self, reading: float, now: float, rule: Rule) -> Level:
        """Return the level after one more reading.

        Args:
            reading: Greater than 0.
            now: Seconds, never falling.
            rule: Of this quantity.

        The level changes to the median of the readings that speak against it.
        """
        gap = 0.0 if self.read_seconds is None else min(now - self.read_seconds, _MOST_GAP_SECONDS)
        off = log(reading / self.value)
        allowed = log(1 + rule.threshold)
        above = max(self.above + gap * _evidence(off - allowed), 0.0)
        below = max(self.below + gap * _evidence(-off - allowed), 0.0)
        strays = (*self.strays, reading)[-_MOST_STRAYS:] if above or below else ()
        seen = replace(self, above=above, below=below, read_seconds=now, strays=strays)
        if max(above, below) < rule.seconds * self._patience(now):
            return seen
        recent = tuple(at for at in self.changes if now - at < _MEMORY_SECONDS)
        return Level(_middle(strays, above > below, self.value), 0.0, 0.0, now, (), (*recent, now))

    def _patience(self, now: float) -> int:
        """Return how many times as long as usual evidence must last.

        A quantity that goes to and fro is better left where it is than followed.
        """
        recent = sum(now - at < _MEMORY_SECONDS for at in self.changes)
        return int(min(2 ** max(recent - _CALM_CHANGES + 1, 0), _MOST_PATIENCE))


def _evidence(beyond: float) -> float:
    """Return how much a reading counts for a second, so far beyond what is allowed."""
    return min(beyond, _MOST_PER_SECOND) if beyond > 0 else _FORGIVENESS * beyond


def _middle(readings: tuple[float, ...], is_above: bool, value: float) -> float:
    """Return the median of the readings on the side to which they left ``value``."""
    return median([r for r in readings if (r > value) is is_above and r != value])
