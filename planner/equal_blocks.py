"""The fast and exact way to split a model whose blocks are all alike. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

from planner.split import EPSILON, Pace, Split, SplitProblem, chain_ends

# Middle, first, last, both: the first stage before the others as they come, then the last.
_CHAIN_ORDER: Final = (1, 0, 2, 0)


def has_equal_blocks(problem: SplitProblem) -> bool:
    """Whether every layer weighs the same and takes the same time on each device."""
    return len(set(problem.layer_bytes)) == 1 and all(
        len(set(row)) == 1 for row in problem.layer_seconds
    )


def best_of_equal_blocks(
    problem: SplitProblem, pace: Pace, limit: float, any_will_do: bool
) -> Split | None:
    """Try each pair of ends; a stage's time is ``base + count * rate``.

    For a given slowest stage the least total puts as many layers as allowed on the devices
    of the best rate. As the allowed slowest stage grows, ``laps * slowest`` rises and that
    total falls, so a bisection over the stage times that can occur finds the best of the
    two. Time O(N^2 log(N L) N) at most; most pairs are refused by one look.
    """
    group = _EqualBlocks(problem, pace)
    best: Split | None = None
    for first, last in chain_ends(len(group.rates)):
        bound = limit if best is None else min(limit, best.seconds)
        if not group.may_reach(bound, first, last):
            continue
        candidate = group.best(bound, first, last)
        if candidate is not None and candidate.is_better_than(best):
            best = candidate
            if any_will_do:
                return best
    return best


class _EqualBlocks:
    """A group of devices whose layers differ in nothing but their device.

    What a device is in the chain, middle, first, last or both ends, decides its fixed time
    (``bases``) and how many layers fit beside that (``fits``); both are looked up by
    ``(device, place)`` with place 0, 1, 2 or 3.
    """

    def __init__(self, problem: SplitProblem, pace: Pace) -> None:
        devices = range(len(problem.memory_bytes))
        self.num_layers = len(problem.layer_bytes)
        self.pace = pace
        self.rates = [problem.layer_seconds[d][0] for d in devices]
        # Every other device needs a layer too, so none can hold more than this.
        most = self.num_layers - len(devices) + 1
        size = max(problem.layer_bytes[0], 1)
        places = ((False, False), (True, False), (False, True), (True, True))
        self.fits = [
            [min(problem.room_bytes(d, *place) // size, most) for place in places] for d in devices
        ]
        self.bases = [[problem.ends_seconds(d, *place) for place in places] for d in devices]
        self.by_rate = sorted(devices, key=lambda d: (self.rates[d], d))
        self._bound = -1.0
        self._caps: list[list[int]] = []
        self._num_full = 0
        self._sum = 0
        self._least_total = self._fill([row[0] for row in self.fits], 0.0)

    def _fill(self, caps: Sequence[int], bases: float) -> float:
        """Return the least total with at most ``caps`` layers each, however they are split."""
        total, left = bases, self.num_layers
        for d in self.by_rate:
            count = min(max(caps[d], 0), left)
            total += count * self.rates[d]
            left -= count
        return total if left == 0 else inf

    def may_reach(self, bound: float, first: int, last: int) -> bool:
        """Return False when no split with these ends is within ``bound``: one look, O(1)."""
        if bound == inf:
            return True
        if bound != self._bound:
            self._bound = bound
            slowest = bound / self.pace.laps
            self._caps = [
                [self._cap(d, place, slowest) for place in range(4)] for d in range(len(self.rates))
            ]
            self._sum = sum(row[0] for row in self._caps)
            self._num_full = sum(row[0] < 1 for row in self._caps)
        caps = self._caps
        if first == last:
            return caps[first][3] >= self.num_layers
        if caps[first][1] < 1 or caps[last][2] < 1:
            return False
        full = self._num_full - (caps[first][0] < 1) - (caps[last][0] < 1)
        layers = self._sum - caps[first][0] - caps[last][0] + caps[first][1] + caps[last][2]
        if full > 0 or layers < self.num_layers:
            return False
        total = self._least_total + self.bases[first][1] + self.bases[last][2]
        way = self.pace.weight * total + self.pace.extra_seconds
        return way <= bound * (1 + EPSILON)

    def _cap(self, device: int, place: int, slowest: float) -> int:
        """Return the most layers with which a stage takes no longer than ``slowest``."""
        rate, base, fit = self.rates[device], self.bases[device][place], self.fits[device][place]
        if rate > 0:
            # The small addend admits a stage that takes exactly ``slowest``.
            return min(fit, int((slowest - base) / rate + EPSILON))
        return fit if base <= slowest else 0

    def best(self, limit: float, first: int, last: int) -> Split | None:
        """Return the best split with these ends whose value is within ``limit``."""
        places = [0] * len(self.rates)
        places[first] |= 1
        places[last] |= 2
        fits = [self.fits[d][place] for d, place in enumerate(places)]
        if min(fits) < 1 or sum(fits) < self.num_layers:
            return None
        if limit < inf:
            counts = self._counts_within(limit / self.pace.laps, places)
            if counts is None or self._split(counts, places).seconds > limit * (1 + EPSILON):
                return None
        times = sorted(
            {
                self.bases[d][places[d]] + count * self.rates[d]
                for d, fit in enumerate(fits)
                for count in range(1, fit + 1)
            }
        )
        low, high = 0, len(times) - 1
        while low < high:
            middle = (low + high) // 2
            if self._paces_all(times[middle], places):
                high = middle
            else:
                low = middle + 1
        # Just below, the way round the ring decides instead of the slowest stage.
        found = [
            self._split(counts, places)
            for time in times[max(low - 1, 0) : low + 1]
            if (counts := self._counts_within(time, places)) is not None
        ]
        best = min(found, default=None)
        return best if best is not None and best.seconds <= limit * (1 + EPSILON) else None

    def _counts_within(self, slowest: float, places: Sequence[int]) -> list[int] | None:
        """Return the counts of least total with no stage over ``slowest``; None if none."""
        counts, left = [1] * len(self.rates), self.num_layers - len(self.rates)
        for d in self.by_rate:
            cap = self._cap(d, places[d], slowest)
            if cap < 1:
                return None
            more = min(cap - 1, left)
            counts[d] += more
            left -= more
        return counts if left == 0 else None

    def _split(self, counts: Sequence[int], places: Sequence[int]) -> Split:
        stages = [
            self.bases[d][places[d]] + count * self.rates[d] for d, count in enumerate(counts)
        ]
        slowest, total = max(stages), sum(stages)
        order = sorted(range(len(counts)), key=lambda d: _CHAIN_ORDER[places[d]])
        return Split(
            self.pace.seconds(slowest, total),
            total,
            slowest,
            tuple(order),
            tuple(counts[d] for d in order),
        )

    def _paces_all(self, slowest: float, places: Sequence[int]) -> bool:
        counts = self._counts_within(slowest, places)
        if counts is None:
            return False
        pace = self.pace
        if pace.weight == 0 and pace.extra_seconds == 0:
            return True
        total = sum(
            self.bases[d][places[d]] + count * self.rates[d] for d, count in enumerate(counts)
        )
        return pace.laps * slowest >= pace.weight * total + pace.extra_seconds
