"""The linear programs over known groups: the lowest fair prices, and the best packing.

The only user of HiGHS.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain
from typing import Final

import highspy
import numpy as np

from planner.bounds.pricing import Column, Prices

# What is not certain is kept for so many rounds.
_MEMORY: Final = 4
# A packing within this of the best known limit, or of so many nodes, is good enough.
# The first of each is for fewer than so many devices, whose plans should take little time.
_PACKING_GAPS: Final = (0.01, 0.002)
_PACKING_NODES: Final = (30, 150)
_MANY_DEVICES: Final = 100


class _QuietHighs(highspy.Highs):
    """The constructor enables callbacks, and that prints a banner unless told not to before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # The same for every solver of a process, or it refuses to run.
        self.setOptionValue("threads", 1)

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


def best_packing(counts: Sequence[int], columns: Sequence[Column]) -> list[Column]:
    """Return disjoint groups, each in one phase, that serve most requests; perhaps none.

    An integer program; what is returned was found within a limit of nodes, not of time, so
    equal arguments give equal packings.

    Args:
        counts: [N], devices of each kind.
        columns: Groups to choose from.
    """
    highs = _QuietHighs()
    is_large = sum(counts) >= _MANY_DEVICES
    highs.setOptionValue("mip_max_nodes", _PACKING_NODES[is_large])
    highs.setOptionValue("mip_rel_gap", _PACKING_GAPS[is_large])
    scale = max((column.requests_per_second for column in columns), default=1.0)
    # The first variable is the rate of the plan, the others say how often each group is used.
    highs.addCol(-1.0, 0.0, highspy.kHighsInf, 0, [], [])
    for index, column in enumerate(columns, start=1):
        kinds = np.flatnonzero(column.counts)
        most = min(counts[int(kind)] // int(column.counts[kind]) for kind in kinds)
        highs.addCol(0.0, 0.0, float(most), 0, [], [])
        highs.changeColIntegrality(index, highspy.HighsVarType.kInteger)
    used = np.array([column.counts for column in columns]).reshape(len(columns), len(counts))
    for kind, count in enumerate(counts):
        at = np.flatnonzero(used[:, kind])
        values = used[at, kind].astype(np.float64)
        indices = (at + 1).astype(np.int32)
        highs.addRow(-highspy.kHighsInf, float(count), len(at), indices, values)
    rates = np.array([column.requests_per_second / scale for column in columns])
    is_prefill = np.array([column.is_prefill for column in columns], dtype=bool)
    for phase in (is_prefill, ~is_prefill):
        at = np.flatnonzero(phase)
        indices = np.concatenate([[0], at + 1]).astype(np.int32)
        values = np.concatenate([[-1.0], rates[at]])
        highs.addRow(0.0, highspy.kHighsInf, len(indices), indices, values)
    highs.run()
    chosen = np.rint(np.array(highs.getSolution().col_value)[1:]).astype(int)
    return [c for c, times in zip(columns, chosen, strict=False) for _ in range(times)]
