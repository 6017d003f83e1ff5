"""Exact splits of a model's layers over one group of devices. Pure.

Order matters only through the ends: the first stage also holds the embedding and the last
one the head (the paper's master rule, with both ends free to be on different devices). Hops
add up to the same whatever the order, since every message passes the broker.

Two numbers of a split decide everything: its slowest stage and the sum of its stages. A
`Pace` turns them into the seconds that are to be made small. Equal blocks, the usual case,
have a fast exact path; unequal ones a dynamic program over subsets of devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf
from typing import Final, NamedTuple

# Up to here the program for unequal blocks tries every order, through subsets of devices
# (time 2^N N L^2); beyond, every pair of ends with the others in the given order.
MAX_SUBSET_DEVICES: Final = 8

_EPSILON: Final = 1e-9


@dataclass(frozen=True, slots=True)
class SplitProblem:
    """A group of N devices and a model of L layers.

    Attributes:
        layer_seconds: [N][L], each layer on each device.
        first_seconds: [N], the embedding.
        last_seconds: [N], the head.
        layer_bytes: [L], weights plus KV cache.
        first_bytes: Of the embedding.
        last_bytes: Of the head.
        shared_bytes: What a stage with both ends holds only once.
        memory_bytes: [N], memory that the device offers.
    """

    layer_seconds: Sequence[Sequence[float]]
    first_seconds: Sequence[float]
    last_seconds: Sequence[float]
    layer_bytes: Sequence[int]
    first_bytes: int
    last_bytes: int
    shared_bytes: int
    memory_bytes: Sequence[int]

    def room_bytes(self, device: int, is_first: bool, is_last: bool) -> int:
        """Return what is left for layers beside the ends that the device holds."""
        room = self.memory_bytes[device]
        room -= self.first_bytes if is_first else 0
        room -= self.last_bytes if is_last else 0
        return room + (self.shared_bytes if is_first and is_last else 0)

    def ends_seconds(self, device: int, is_first: bool, is_last: bool) -> float:
        """Return the time of the ends that the device holds."""
        ends = self.first_seconds[device] if is_first else 0.0
        return ends + (self.last_seconds[device] if is_last else 0.0)


@dataclass(frozen=True, slots=True)
class Pace:
    """What a split is judged by: ``max(weight * total + extra, laps * slowest)``.

    With weight 0 it is the paper's bottleneck; with weight 1, ``laps`` groups in flight and
    the hops as ``extra``, it is the time between two tokens of a request.
    """

    laps: int = 1
    weight: float = 0.0
    extra_seconds: float = 0.0

    def seconds(self, slowest: float, total: float) -> float:
        """Return the value of a split."""
        return max(self.weight * total + self.extra_seconds, self.laps * slowest)


class Split(NamedTuple):
    """One way to split; compares by value, then by total, so that `min` is the best.

    Attributes:
        seconds: By the pace that was asked for.
        total: Sum of the stages.
        slowest: The slowest stage.
        order: [N], device indexes in stage order.
        counts: [N], layers of each stage.
    """

    seconds: float
    total: float
    slowest: float
    order: tuple[int, ...]
    counts: tuple[int, ...]

    def is_better_than(self, other: Split | None) -> bool:
        """Whether value or, the values being equal, total is lower by more than rounding."""
        if other is None or self.seconds < other.seconds * (1 - _EPSILON):
            return True
        return self.seconds <= other.seconds * (1 + _EPSILON) and self.total < other.total * (
            1 - _EPSILON
        )


def best_split(problem: SplitProblem, pace: Pace, limit: float = inf) -> Split | None:
    """Return the best split in which every device holds at least one layer.

    Args:
        problem: The group.
        pace: What is to be made small; ties go to the smaller sum of stages, then to the
            order of the devices as given.
        limit: Splits with a larger value do not count.

    Returns:
        None when nothing fits in memory, or within the limit.
    """
    num_devices, num_layers = len(problem.memory_bytes), len(problem.layer_bytes)
    if not 1 <= num_devices <= num_layers:
        return None
    if has_equal_blocks(problem):
        return _best_of_equal_blocks(problem, pace, limit)
    best: Split | None = None
    for end in pareto_splits(problem):
        seconds = pace.seconds(end.slowest, end.total)
        split = Split(seconds, end.total, end.slowest, end.order, end.counts)
        if seconds <= limit * (1 + _EPSILON) and split.is_better_than(best):
            best = split
    return best


def has_equal_blocks(problem: SplitProblem) -> bool:
    """Whether every layer weighs the same and takes the same time on each device."""
    return len(set(problem.layer_bytes)) == 1 and all(
        len(set(row)) == 1 for row in problem.layer_seconds
    )


# --- equal blocks -------------------------------------------------------------------------


def _best_of_equal_blocks(problem: SplitProblem, pace: Pace, limit: float) -> Split | None:
    """Try each pair of ends; a stage's time is ``base + count * rate``.

    For a given slowest stage the least total puts as many layers as allowed on the devices
    of the best rate. As the allowed slowest stage grows, ``laps * slowest`` rises and that
    total falls, so a bisection over the stage times that can occur finds the best of the
    two. Time O(N^2 log(N L) N) at most; most pairs are refused by one look.
    """
    num_devices = len(problem.memory_bytes)
    best: Split | None = None
    for first, last in _ends(num_devices):
        candidate = _Ends(problem, pace, first, last).best(limit, best)
        if candidate is not None and candidate.is_better_than(best):
            best = candidate
    return best


def _ends(num_devices: int) -> Iterator[tuple[int, int]]:
    if num_devices == 1:
        yield 0, 0
        return
    for first in range(num_devices):
        for last in range(num_devices):
            if first != last:
                yield first, last


class _Ends:
    """Splits of equal blocks with given first and last device."""

    def __init__(self, problem: SplitProblem, pace: Pace, first: int, last: int) -> None:
        devices = range(len(problem.memory_bytes))
        self.num_layers = len(problem.layer_bytes)
        self.pace = pace
        self.first, self.last = first, last
        self.rates = [problem.layer_seconds[d][0] for d in devices]
        self.bases = [problem.ends_seconds(d, d == first, d == last) for d in devices]
        size = problem.layer_bytes[0]
        # Every other device needs a layer too, so none can hold more than this.
        most = self.num_layers - len(devices) + 1
        rooms = [problem.room_bytes(d, d == first, d == last) for d in devices]
        self.fits = [
            most if size == 0 <= room else min(room // max(size, 1), most) for room in rooms
        ]
        self.by_rate = sorted(devices, key=lambda d: (self.rates[d], d))

    def counts_within(self, slowest: float) -> list[int] | None:
        """Return the counts of least total with no stage over ``slowest``; None if none."""
        counts, left = [1] * len(self.rates), self.num_layers - len(self.rates)
        for d in self.by_rate:
            count = self.fits[d]
            if self.rates[d] > 0:
                # The small addend admits a stage that takes exactly ``slowest``.
                count = min(count, int((slowest - self.bases[d]) / self.rates[d] + _EPSILON))
            elif self.bases[d] > slowest:
                return None
            if count < 1:
                return None
            more = min(count - 1, left)
            counts[d] += more
            left -= more
        return counts if left == 0 else None

    def split(self, counts: Sequence[int]) -> Split:
        stages = [b + c * r for b, c, r in zip(self.bases, counts, self.rates, strict=True)]
        slowest, total = max(stages), sum(stages)
        middle = [d for d in range(len(counts)) if d not in (self.first, self.last)]
        order = [self.first, *middle, self.last] if len(counts) > 1 else [self.first]
        return Split(
            self.pace.seconds(slowest, total),
            total,
            slowest,
            tuple(order),
            tuple(counts[d] for d in order),
        )

    def best(self, limit: float, rival: Split | None) -> Split | None:
        """Return the best split that may beat ``rival`` and keeps the limit."""
        if min(self.fits) < 1 or sum(self.fits) < self.num_layers:
            return None
        bound = limit if rival is None else min(limit, rival.seconds)
        if bound < inf:
            counts = self.counts_within(bound / self.pace.laps)
            if counts is None or self.split(counts).seconds > bound * (1 + _EPSILON):
                return None
        times = sorted(
            {
                base + count * rate
                for base, rate, fit in zip(self.bases, self.rates, self.fits, strict=True)
                for count in range(1, fit + 1)
            }
        )
        low, high = 0, len(times) - 1
        while low < high:
            middle = (low + high) // 2
            if self._paces_all(times[middle]):
                high = middle
            else:
                low = middle + 1
        # Just below, the way round the ring decides instead of the slowest stage.
        found = [
            self.split(counts)
            for time in times[max(low - 1, 0) : low + 1]
            if (counts := self.counts_within(time)) is not None
        ]
        best = min(found, default=None)
        return best if best is not None and best.seconds <= limit * (1 + _EPSILON) else None

    def _paces_all(self, slowest: float) -> bool:
        counts = self.counts_within(slowest)
        if counts is None:
            return False
        pace = self.pace
        if pace.weight == 0 and pace.extra_seconds == 0:
            return True
        total = self.split(counts).total
        return pace.laps * slowest >= pace.weight * total + pace.extra_seconds


# --- unequal blocks -----------------------------------------------------------------------


class _End(NamedTuple):
    """A split of the first layers; ordered so that sorting puts the fastest first."""

    slowest: float
    total: float
    order: tuple[int, ...]
    counts: tuple[int, ...]


_Fronts = dict[int, list[_End]]
"""Number of layers placed to the Pareto front of (slowest, total)."""


def pareto_splits(problem: SplitProblem) -> list[_End]:
    """Return the splits of which none is better in both slowest stage and sum of stages.

    A dynamic program over the set of devices used and the number of layers placed. It is
    exact for any pace, since every pace grows with both numbers: a dominated beginning
    never becomes better than the one that dominates it.
    """
    num_devices = len(problem.memory_bytes)
    tables = _Tables(problem)
    everyone = (1 << num_devices) - 1
    start: _Fronts = {0: [_End(0.0, 0.0, (), ())]}
    if num_devices > MAX_SUBSET_DEVICES:
        return _pruned(
            [
                end
                for first, last in _ends(num_devices)
                for end in _chain(tables, start, first, last)
            ]
        )
    fronts: dict[int, _Fronts] = {0: start}
    for used in range(1, everyone + 1):
        merged: dict[int, list[_End]] = {}
        for device in range(num_devices):
            if used >> device & 1:
                before = fronts[used & ~(1 << device)]
                for placed, ends in tables.extended(before, device, used == everyone).items():
                    merged.setdefault(placed, []).extend(ends)
        fronts[used] = {placed: _pruned(ends) for placed, ends in merged.items()}
    return fronts[everyone].get(len(problem.layer_bytes), [])


def _chain(tables: _Tables, start: _Fronts, first: int, last: int) -> list[_End]:
    devices = range(len(tables.problem.memory_bytes))
    order = [first, *(d for d in devices if d not in (first, last)), last]
    fronts = start
    for device in order:
        fronts = tables.extended(fronts, device, device == last)
    return fronts.get(len(tables.problem.layer_bytes), [])


class _Tables:
    """Prefix sums of a problem, and the step of its dynamic program."""

    def __init__(self, problem: SplitProblem) -> None:
        self.problem = problem
        self.bytes_until = [0, *accumulate(problem.layer_bytes)]
        self.seconds_until = [[0.0, *accumulate(row)] for row in problem.layer_seconds]

    def extended(self, fronts: _Fronts, device: int, is_last: bool) -> _Fronts:
        """Give ``device`` the next stage; the last one takes all layers that are left."""
        num_layers = len(self.problem.layer_bytes)
        longer: dict[int, list[_End]] = {}
        for start, ends in fronts.items():
            room = self.problem.room_bytes(device, start == 0, is_last)
            base = self.problem.ends_seconds(device, start == 0, is_last)
            seconds = self.seconds_until[device]
            for end in range(num_layers if is_last else start + 1, num_layers + 1):
                if end <= start or self.bytes_until[end] - self.bytes_until[start] > room:
                    break
                stage = base + seconds[end] - seconds[start]
                longer.setdefault(end, []).extend(
                    _End(
                        max(e.slowest, stage),
                        e.total + stage,
                        (*e.order, device),
                        (*e.counts, end - start),
                    )
                    for e in ends
                )
        return {placed: _pruned(found) for placed, found in longer.items()}


def _pruned(ends: list[_End]) -> list[_End]:
    front: list[_End] = []
    for end in sorted(ends):
        if not front or end.total < front[-1].total:
            front.append(end)
    return front
