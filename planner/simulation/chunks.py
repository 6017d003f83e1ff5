"""The chunks of one prompt on their way through a replica's stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from planner.simulation.attempts import Attempt
from planner.simulation.pace import Pace


class _Entry(NamedTuple):
    """A chunk: when it enters, what is then done, when each stage is free, when it leaves."""

    start: float
    position: int
    free: tuple[float, ...]
    leaves: float


class ChunkPipeline:
    """Stages that chunks pass in order, each stage one chunk at a time.

    Args:
        num_resources: Stages, and links where they count (see `Pace.delays`).
    """

    def __init__(self, num_resources: int) -> None:
        self._free = [0.0] * num_resources
        self._entries: list[_Entry] = []
        self._begin = 0

    @property
    def entry_free(self) -> float:
        """When the first stage is free again."""
        return self._free[0]

    @property
    def empty_at(self) -> float:
        """When all stages are free again."""
        return max(self._free)

    @property
    def num_entering(self) -> int:
        """Positions of the present prompt that have entered or will."""
        return self._entries[-1].position - self._begin if self._entries else 0

    def enter(self, pace: Pace, attempt: Attempt, now: float) -> float:
        """Send the rest of a prompt in; return when its first chunk leaves the last stage."""
        self._begin = position = attempt.position
        while position < attempt.prompt_tokens:
            start = max(now, self._free[0])
            size = pace.chunk_tokens(attempt.prompt_tokens, position)
            leaves = pace.pass_chunk(self._free, start, pace.chunk_seconds(size, position))
            position += size
            self._entries.append(_Entry(start, position, tuple(self._free), leaves))
        return self._entries[0].leaves

    def squeeze_in(self, pace: Pace, chunk: Sequence[float], now: float) -> float:
        """Send one chunk in, its times given; return when it leaves the last stage."""
        return pace.pass_chunk(self._free, max(now, self._free[0]), chunk)

    def cut(self, now: float) -> bool:
        """Let no chunk but the first enter after ``now``; return whether that changes anything."""
        entered = self._entries[:1] + [entry for entry in self._entries[1:] if entry.start <= now]
        if len(entered) == len(self._entries):
            return False
        self._entries = entered
        self._free = list(entered[-1].free)
        return True

    def end(self, pace: Pace, busy_seconds: list[float]) -> tuple[int, float]:
        """Account what has entered; return the position reached and when that has left."""
        position = self._begin
        for entry in self._entries:
            chunk = pace.chunk_seconds(entry.position - position, position)
            pace.count_chunk(chunk, busy_seconds)
            position = entry.position
        leaves = self._entries[-1].leaves
        self._entries = []
        return position, leaves
