"""How recent computations compare with the profile, for telemetry. Pure."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Final

WINDOW_SECONDS: Final = 5.0
"""Long enough for a median, and short enough that a slow device is noticed within seconds."""
_FEWEST: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One computation that has ended.

    Attributes:
        at: Monotonic seconds when it ended.
        replica: Its id.
        rows: Of a decode step, its rows, guesses included; else the tokens of a prompt, in
            proportion to the part of the stage's layers that ran.
        seconds: What it took.
        active_seconds: What it would have taken with a core whenever it wanted one.
        predicted_seconds: By what the device measured of itself; None when it did not.
    """

    at: float
    replica: str
    is_decode: bool
    rows: float
    seconds: float
    active_seconds: float
    predicted_seconds: float | None


class RunLog:
    """Computations of the last seconds."""

    def __init__(self) -> None:
        self._runs: deque[Run] = deque(maxlen=10_000)

    def add(self, run: Run) -> None:
        """A computation ended."""
        self._runs.append(run)

    def forget_old(self, now: float) -> None:
        """Drop what is older than the window.

        Long computations stay longer, or there would never be enough of them.
        """
        while self._runs and now - self._runs[0].at > (
            WINDOW_SECONDS + _FEWEST * self._runs[0].seconds
        ):
            self._runs.popleft()

    def speed_ratio(self) -> float | None:
        """Return predicted over active seconds; None when too little ran to tell.

        The median by time: half of the computing time was faster. So one odd computation
        does not count, and a device that has become slow is seen although it runs less often.
        """
        known = [r for r in self._runs if r.predicted_seconds and r.active_seconds > 0]
        if len(known) < _FEWEST:
            return None
        return _weighted_median(
            ((run.predicted_seconds or 0.0) / run.active_seconds, run.active_seconds)
            for run in known
        )

    def core_wait_ratio(self) -> float:
        """Return the share of the computing time that was spent waiting for a core."""
        seconds = sum(run.seconds for run in self._runs)
        active = sum(run.active_seconds for run in self._runs)
        return min(max(1 - active / seconds, 0.0), 1.0) if seconds > 0 else 0.0

    def stage_seconds(self) -> dict[str, float]:
        """Return the median seconds of a decode step by replica."""
        return {
            replica: median(run.seconds for run in runs)
            for replica, runs in self._by_replica(is_decode=True).items()
        }

    def stage_rows(self) -> dict[str, float]:
        """Return the mean rows of a decode step by replica."""
        return {
            replica: sum(run.rows for run in runs) / len(runs)
            for replica, runs in self._by_replica(is_decode=True).items()
        }

    def prefill_token_seconds(self) -> dict[str, float]:
        """Return the seconds for each token of a prompt by replica."""
        return {
            replica: sum(run.seconds for run in runs) / tokens
            for replica, runs in self._by_replica(is_decode=False).items()
            if (tokens := sum(run.rows for run in runs))
        }

    def tokens_per_second(self) -> float:
        """Return rows of decode steps per second over the window."""
        return sum(run.rows for run in self._runs if run.is_decode) / WINDOW_SECONDS

    def _by_replica(self, *, is_decode: bool) -> dict[str, list[Run]]:
        found: defaultdict[str, list[Run]] = defaultdict(list)
        for run in self._runs:
            if run.is_decode is is_decode:
                found[run.replica].append(run)
        return found


def _weighted_median(pairs: Iterable[tuple[float, float]]) -> float:
    """Return the first value at which half of all weight is reached."""
    ordered = sorted(pairs)
    half, passed = sum(weight for _, weight in ordered) / 2, 0.0
    for value, weight in ordered:
        passed += weight
        if passed >= half:
            return value
    raise AssertionError("the weights add up to more than half of themselves")
