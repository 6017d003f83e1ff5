"""Times of a stage as small tables: hashable values that are called like functions. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class PrefillCurve:
    """Seconds of a stage for the first n positions of a prompt, as a line through points.

    A chunk costs the difference of the curve at its ends, so the chunks of a prompt add up
    to what the whole prompt costs. Up to the first point the curve is that point's value
    (a step has a fixed part); beyond the last one the last slope goes on.

    Attributes:
        points: (positions, seconds), both rising.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        _check_rising(self.points, "a prefill curve")

    def __call__(self, num_tokens: int, position: int) -> float:
        """Return seconds for ``num_tokens`` positions from ``position`` on."""
        if len(self.points) == 1 and self.points[0][0] == 1:
            return self.points[0][1] * num_tokens
        return self._until(position + num_tokens) - self._until(position)

    def _until(self, position: float) -> float:
        if position <= 0:
            return 0.0
        return _line(self.points, position)


def prefill_rate(tokens_per_second: float) -> PrefillCurve:
    """Return the curve of a stage that takes the same time for every position."""
    if not tokens_per_second > 0:
        raise ValueError(f"a prefill rate must be greater than 0, not {tokens_per_second}")
    return PrefillCurve(((1.0, 1 / tokens_per_second),))


@dataclass(frozen=True, slots=True)
class DecodeTable:
    """Seconds of a stage's decode step over rows and context.

    Linear between contexts, then between rows; beyond the ends of rows along the last two
    points, beyond the ends of contexts constant below and along the last two above.

    Attributes:
        rows: Rising numbers of rows.
        contexts: Rising mean contexts in positions.
        seconds: [len(rows)][len(contexts)].
    """

    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    seconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        widths = {len(line) for line in self.seconds}
        if not self.rows or len(self.rows) != len(self.seconds) or widths != {len(self.contexts)}:
            raise ValueError("a decode table needs one line per row count, one value per context")
        for axis in (self.rows, self.contexts):
            if any(a >= b for a, b in pairwise(axis)):
                raise ValueError("the axes of a decode table must rise")
        if not all(value >= 0 and math.isfinite(value) for line in self.seconds for value in line):
            raise ValueError("the times of a decode table must be finite and not negative")

    @property
    def is_context_free(self) -> bool:
        """Whether the context makes no difference."""
        return len(self.contexts) == 1

    def __call__(self, rows: int, context: float) -> float:
        """Return seconds of one step of ``rows`` rows that see ``context`` positions each."""
        lower, upper = _around(self.rows, rows)
        low = _between(self.contexts, self.seconds[lower], context)
        if lower == upper:
            return low
        high = _between(self.contexts, self.seconds[upper], context)
        return _on_line(self.rows[lower], low, self.rows[upper], high, rows)


def decode_times(points: Sequence[tuple[int, float]]) -> DecodeTable:
    """Return the table of (rows, seconds) points that no context changes."""
    return DecodeTable(tuple(r for r, _ in points), (0,), tuple((s,) for _, s in points))


@dataclass(frozen=True, slots=True)
class LinearDecode:
    """``base + row * rows + position * rows * context`` seconds: the usual fitted form.

    Attributes:
        base_seconds: Of a step, whatever its size (reading the weights).
        row_seconds: Of each row.
        position_seconds: Of each position that each row attends to.
    """

    base_seconds: float
    row_seconds: float = 0.0
    position_seconds: float = 0.0

    @property
    def is_context_free(self) -> bool:
        """Whether the context makes no difference."""
        return self.position_seconds == 0

    def __call__(self, rows: int, context: float) -> float:
        """Return seconds of one step of ``rows`` rows that see ``context`` positions each."""
        return self.base_seconds + rows * (self.row_seconds + self.position_seconds * context)


def _line(points: Sequence[tuple[float, float]], x: float) -> float:
    if x <= points[0][0] or len(points) == 1:
        return points[0][1]
    index = min(bisect_left(points, x, key=lambda point: point[0]), len(points) - 1)
    return _on_line(*points[index - 1], *points[index], x)


def _around(axis: Sequence[float], x: float) -> tuple[int, int]:
    """Return between which two of ``axis`` a value is taken; twice the first, at or below it."""
    if x <= axis[0] or len(axis) == 1:
        return 0, 0
    index = min(bisect_left(axis, x), len(axis) - 1)
    return index - 1, index


def _between(axis: Sequence[float], values: Sequence[float], x: float) -> float:
    lower, upper = _around(axis, x)
    if lower == upper:
        return values[lower]
    return _on_line(axis[lower], values[lower], axis[upper], values[upper], x)


def _on_line(x0: float, y0: float, x1: float, y1: float, x: float) -> float:
    return max(y0 + (y1 - y0) * (x - x0) / (x1 - x0), 0.0)


def _check_rising(points: Sequence[tuple[float, float]], what: str) -> None:
    if not points or points[0][0] <= 0 or points[0][1] < 0:
        raise ValueError(f"{what} needs a first point with positions > 0 and seconds >= 0")
    for (x0, y0), (x1, y1) in pairwise(points):
        if not (x0 < x1 and y0 <= y1 < math.inf):
            raise ValueError(f"{what} must rise: ({x0}, {y0}) is followed by ({x1}, {y1})")
