"""How long requests that are traced take at one stage, by its own clock. Pure.

Nobody asks for most requests: those are not in here, and every method returns at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

from broker.events import KvArrival, Spell, StageTimes
from broker.work import Open, RequestKey


class HasKey(Protocol):
    """A row of a step, or its result."""

    @property
    def key(self) -> RequestKey:
        """The request and attempt."""


@dataclass(slots=True)
class _Stay:
    """One phase of one request: `Spell`, while it grows."""

    seconds: float = 0.0
    computing_seconds: float = 0.0
    count: int = 0

    def ran(self, began: float, now: float) -> None:
        self.computing_seconds += now - began
        self.count += 1

    @property
    def spell(self) -> Spell:
        return Spell(max(self.seconds, 0.0), max(self.computing_seconds, 0.0), self.count)


@dataclass(slots=True)
class _Times:
    chunk_came_at: float
    prefill: _Stay = field(default_factory=_Stay)
    decode: _Stay = field(default_factory=_Stay)
    row_came_at: float | None = None
    kv_bytes: int = 0
    kv_began_at: float = 0.0
    kv_ended_at: float = 0.0
    token_at: float | None = None
    complete_at: float | None = None
    row_at: float | None = None


class Timing:
    """The traced requests of one stage.

    Args:
        replica: Id of its replica.
        stage: Its index.
    """

    def __init__(self, replica: str, stage: int) -> None:
        self._replica, self._stage = replica, stage
        self._times: dict[RequestKey, _Times] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no request here is traced, so that nobody needs to look at a clock."""
        return not self._times

    def open(self, message: Open, now: float) -> None:
        """A request was opened."""
        if message.traceparent is not None:
            self._times[message.key] = _Times(now)

    def close(self, key: RequestKey) -> StageTimes | None:
        """A request has ended here; return what it took, if somebody wants to know."""
        times = self._times.pop(key, None)
        if times is None:
            return None
        came = KvArrival(times.kv_bytes, times.kv_ended_at - times.kv_began_at)
        return StageTimes(
            request_id=key.request_id,
            attempt=key.attempt,
            replica=self._replica,
            stage=self._stage,
            prefill=times.prefill.spell,
            decode=times.decode.spell,
            kv=came if times.kv_bytes else None,
            handover_seconds=_between(times.token_at, times.complete_at),
            waiting_seconds=_between(times.complete_at, times.row_at),
        )

    # --- prefill -------------------------------------------------------------------------------

    def chunk_came(self, key: RequestKey, now: float) -> None:
        """A chunk came from the stage before."""
        if (times := self._times.get(key)) is not None:
            times.chunk_came_at = now

    def chunk_ran(self, key: RequestKey, began: float, now: float) -> None:
        """A chunk was computed, and its result leaves."""
        if (times := self._times.get(key)) is not None:
            times.prefill.ran(began, now)
            # Of the last chunk alone: stages work on different ones at a time.
            times.prefill.seconds = now - times.chunk_came_at

    def kv_came(self, key: RequestKey, num_bytes: int, now: float) -> None:
        """A chunk of KV came."""
        if (times := self._times.get(key)) is not None:
            if not times.kv_bytes:
                times.kv_began_at = now
            times.kv_bytes += num_bytes
            times.kv_ended_at = now

    # --- at a decode master --------------------------------------------------------------------

    def token_came(self, key: RequestKey, now: float) -> None:
        """The token that prefill sampled is there, perhaps once more."""
        if (times := self._times.get(key)) is not None and times.token_at is None:
            times.token_at = now

    def complete(self, key: RequestKey, now: float) -> None:
        """Token and KV are there."""
        if (times := self._times.get(key)) is not None:
            times.complete_at = now

    def row_given(self, key: RequestKey, now: float) -> None:
        """The request may decode: its first row is there."""
        if (times := self._times.get(key)) is not None:
            times.row_at = times.row_came_at = now

    # --- decode --------------------------------------------------------------------------------

    def rows_came(self, rows: Iterable[HasKey], now: float) -> None:
        """Rows of a step came from the stage before; at the master, results from the last one."""
        if self._times:
            for row in rows:
                if (times := self._times.get(row.key)) is not None:
                    times.row_came_at = now

    def rows_ran(self, rows: Iterable[HasKey], began: float, now: float) -> None:
        """A group was computed, and its rows leave."""
        if self._times:
            # Proposed rows are of the same step as the row before them.
            for key in {row.key for row in rows}:
                if (times := self._times.get(key)) is not None:
                    times.decode.ran(began, now)
                    # A result that is sent again has left before.
                    if times.row_came_at is not None:
                        times.decode.seconds += now - times.row_came_at
                        times.row_came_at = None


def _between(began: float | None, ended: float | None) -> float:
    return 0.0 if began is None or ended is None else max(ended - began, 0.0)
