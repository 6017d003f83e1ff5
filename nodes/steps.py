"""How recent decode steps compare with the profile, for telemetry. Pure."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Final

_WINDOW_SECONDS: Final = 10.0
_FEWEST_STEPS: Final = 5


@dataclass(frozen=True, slots=True)
class _Step:
    at: float
    replica: str
    rows: int
    seconds: float
    predicted_seconds: float | None
    is_late: bool


class StepLog:
    """Decode steps of the last ten seconds."""

    def __init__(self) -> None:
        self._steps: deque[_Step] = deque(maxlen=10_000)

    def add(
        self,
        now: float,
        replica: str,
        rows: int,
        seconds: float,
        predicted: float | None,
        *,
        is_late: bool = False,
    ) -> None:
        """A decode step of ``rows`` rows ended now.

        Args:
            now: Monotonic seconds.
            replica: Its id.
            rows: Requests that got a token.
            seconds: What the step took.
            predicted: What it should have taken; None when that was not measured.
            is_late: An emulated device could not end it in time, because its host was busy.
        """
        self._steps.append(_Step(now, replica, rows, seconds, predicted, is_late))

    def forget_old(self, now: float) -> None:
        """Drop what is older than the window."""
        while self._steps and now - self._steps[0].at > _WINDOW_SECONDS:
            self._steps.popleft()

    def speed_ratio(self) -> float:
        """Return predicted over measured seconds; 1.0 when too little ran to tell.

        Late steps of an emulated device are left out: they tell of its host, which other
        emulated devices share, and are reported by their number. Were they counted, a fog
        that uses its cores fully would look slower than planned, and be planned anew.
        """
        known = [s for s in self._steps if s.predicted_seconds is not None and not s.is_late]
        if len(known) < _FEWEST_STEPS:
            return 1.0
        measured = sum(step.seconds for step in known)
        predicted = sum(step.predicted_seconds or 0.0 for step in known)
        return predicted / measured if measured > 0 and predicted > 0 else 1.0

    def stage_seconds(self) -> dict[str, float]:
        """Return the mean seconds of a decode step by replica."""
        by_replica: defaultdict[str, list[float]] = defaultdict(list)
        for step in self._steps:
            by_replica[step.replica].append(step.seconds)
        return {replica: sum(times) / len(times) for replica, times in by_replica.items()}

    def tokens_per_second(self) -> float:
        """Return rows of decode steps per second over the window."""
        return sum(step.rows for step in self._steps) / _WINDOW_SECONDS
