"""Measured times of single parts, and what a whole computation should take by them. Pure.

The same reading of the points as the planner's: linear between them, never falling, so that
an emulated device takes the time that the plan predicts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker.control import Control, DecodeTime, LayerTimes, PrefillTime

if TYPE_CHECKING:
    # Not at run time: it imports torch.
    from nodes.compute import JobCost

Points = Sequence[tuple[int, float]]


class Calibration(Control, frozen=True, kw_only=True):
    """What a device measured for one shape of model, before any slowdown; also the cache file.

    Attributes:
        blocks: Kind of block to its times.
        chunk_tokens: Chunk grid that the prefill times were measured with.
        cpu_seconds_per_second: Thread CPU time over wall time while measuring.
    """

    blocks: dict[str, LayerTimes]
    embedding: LayerTimes
    head: LayerTimes
    chunk_tokens: int
    cpu_seconds_per_second: float

    def slowed(self, factor: float) -> Calibration:
        """Return the times of a device that is ``factor`` times slower."""
        return Calibration(
            blocks={kind: _slowed(times, factor) for kind, times in self.blocks.items()},
            embedding=_slowed(self.embedding, factor),
            head=_slowed(self.head, factor),
            chunk_tokens=self.chunk_tokens,
            cpu_seconds_per_second=self.cpu_seconds_per_second,
        )


def _slowed(times: LayerTimes, factor: float) -> LayerTimes:
    return LayerTimes(
        prefill=[PrefillTime(t.num_tokens, t.seconds * factor) for t in times.prefill],
        decode=[DecodeTime(t.batch, t.context, t.seconds * factor) for t in times.decode],
    )


class CostTable:
    """Seconds of computations, from one calibration. Called once per step, so tables are ready."""

    def __init__(self, calibration: Calibration) -> None:
        self._blocks = {kind: _Part(times) for kind, times in calibration.blocks.items()}
        self._embedding = _Part(calibration.embedding)
        self._head = _Part(calibration.head)

    def seconds(self, cost: JobCost) -> float:
        """Return what the computation takes on the calibrated device."""
        parts = [(self._blocks[kind], count) for kind, count in Counter(cost.kinds).items()]
        if cost.embedding:
            parts.append((self._embedding, 1))
        if cost.is_decode:
            total = sum(n * part.decode(cost.rows, cost.context) for part, n in parts)
            return total + (
                self._head.decode(cost.head_rows, cost.context) if cost.head_rows else 0
            )
        start = cost.context - cost.rows
        total = sum(n * part.chunk(start, cost.context) for part, n in parts)
        return total + (self._head.decode(cost.head_rows, cost.context) if cost.head_rows else 0)


@dataclass(slots=True)
class _Part:
    """Times of one part as rising lines."""

    _prefill: Points
    _decode: Mapping[int, Points]
    _batches: Sequence[int]

    def __init__(self, times: LayerTimes) -> None:
        self._prefill = _rising((t.num_tokens, t.seconds) for t in times.prefill)
        by_batch: defaultdict[int, list[tuple[int, float]]] = defaultdict(list)
        for time in times.decode:
            by_batch[time.batch].append((time.context, time.seconds))
        self._decode = {batch: _rising(points) for batch, points in by_batch.items()}
        self._batches = sorted(self._decode)

    def decode(self, rows: int, context: int) -> float:
        return _line(_rising((b, _line(self._decode[b], context)) for b in self._batches), rows)

    def chunk(self, start: int, end: int) -> float:
        """Return the time of positions ``[start, end)`` of a prompt.

        What a prompt of ``end`` tokens takes longer than one of ``start``; but never less
        than one row of decode, which the difference of two points on a flat line would say.
        """
        whole = _line(self._prefill, end)
        before = _line(self._prefill, start) if start > 0 else 0.0
        return max(whole - before, self.decode(1, end) if start > 0 else 0.0)


def _rising(points: Iterable[tuple[int, float]]) -> Points:
    """Sort by x and lift each y to the largest before it: more work is never faster."""
    lifted: list[tuple[int, float]] = []
    largest = 0.0
    for x, y in sorted(points):
        largest = max(largest, y)
        if lifted and lifted[-1][0] == x:
            lifted.pop()
        lifted.append((x, largest))
    return lifted


def _line(points: Points, x: int) -> float:
    """Return y at ``x``: linear between points, flat before the first, beyond the last on."""
    if x <= points[0][0] or len(points) == 1:
        return points[0][1]
    index = min(bisect_left(points, x, key=lambda point: point[0]), len(points) - 1)
    (x0, y0), (x1, y1) = points[index - 1], points[index]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
