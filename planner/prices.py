"""Prices of devices and requests that leave no known group a profit: a linear program.

The only user of HiGHS.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import Final

import highspy
import numpy as np

from planner.pricing import Column, Prices

# What is not certain is kept for so many rounds.
_MEMORY: Final = 4


class _QuietHighs(highspy.Highs):
    """The constructor enables callbacks, and that prints a banner unless told not to before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def enableCallbacks(self) -> None:  # noqa: N802  # their name
        self.silent()
        super().enableCallbacks()  # type: ignore[no-untyped-call]


class PriceProgram:
    """Minimise the price of all devices; groups are added as they become known.

    Variables: a price for each kind of device, and the worth of a prompt.
    """

    def __init__(self, counts: Sequence[int], scale: float) -> None:
        """Begin without groups.

        Args:
            counts: [N], devices of each kind.
            scale: Requests per second of the order of the answer.
        """
        self._scale = scale
        self._num_kinds = len(counts)
        self._num_certain = 0
        self._passing: deque[Sequence[Column]] = deque(maxlen=_MEMORY)
        self._highs = _QuietHighs()
        for count in counts:
            self._highs.addCol(float(count), 0.0, highspy.kHighsInf, 0, [], [])
        self._highs.addCol(0.0, 0.0, 1.0, 0, [], [])

    def add(self, columns: Sequence[Column]) -> None:
        """Let no prices pass at which a group earns more than it costs.

        What is not certain of a group holds for the prices of the moment, and is forgotten
        after `_MEMORY` times.
        """
        first = self._num_certain
        rows = self._highs.getNumRow()
        if rows > first:
            indices = np.arange(first, rows, dtype=np.int32)
            self._highs.deleteRows(len(indices), indices)
        certain = [column for column in columns if column.is_certain]
        self._passing.append([column for column in columns if not column.is_certain])
        self._num_certain += len(certain)
        for column in [*certain, *chain(*self._passing)]:
            self._append(column)

    def _append(self, column: Column) -> None:
        rate = column.requests_per_second / self._scale
        kinds = np.flatnonzero(column.counts)
        indices = np.append(kinds, self._num_kinds).astype(np.int32)
        worth = -rate if column.is_prefill else rate
        values = np.append(column.counts[kinds].astype(np.float64), worth)
        least = 0.0 if column.is_prefill else rate
        self._highs.addRow(least, highspy.kHighsInf, len(indices), indices, values)

    def solve(self) -> Prices | None:
        """Return the lowest prices; None when the solver fails."""
        self._highs.run()
        if self._highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            return None
        values = np.array(self._highs.getSolution().col_value)
        prompt = float(min(max(values[-1], 0.0), 1.0))
        return Prices(np.maximum(values[:-1], 0.0) * self._scale, prompt)
