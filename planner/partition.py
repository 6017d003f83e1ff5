"""Exact splits of a model's layers over one group of devices. Pure.

Order matters only through the ends: the first stage also holds the embedding and the last
one the head (the paper's master rule, with both ends free to be on different devices). Hops
add up to the same whatever the order, since every message passes the broker.

Two numbers of a split decide everything: its slowest stage and the sum of its stages. A
`Pace` turns them into the seconds that are to be made small. Equal blocks, the usual case,
have a fast exact way of their own; unequal ones a dynamic program over subsets of devices.
"""

from __future__ import annotations

from itertools import accumulate
from math import inf
from typing import Final, NamedTuple

from planner.equal_blocks import best_of_equal_blocks, has_equal_blocks
from planner.split import EPSILON, Pace, Split, SplitProblem, chain_ends

# Up to here the program for unequal blocks tries every order, through subsets of devices
# (time 2^N N L^2); beyond, every pair of ends with the others in the given order.
MAX_SUBSET_DEVICES: Final = 8


def best_split(
    problem: SplitProblem, pace: Pace, limit: float = inf, any_will_do: bool = False
) -> Split | None:
    """Return the best split in which every device holds at least one layer.

    Args:
        problem: The group.
        pace: What is to be made small; ties go to the smaller sum of stages, then to the
            order of the devices as given.
        limit: Splits with a larger value do not count.
        any_will_do: Return the first split within the limit, which is faster.

    Returns:
        None when nothing fits in memory, or within the limit.
    """
    num_devices, num_layers = len(problem.memory_bytes), len(problem.layer_bytes)
    if not 1 <= num_devices <= num_layers:
        return None
    if has_equal_blocks(problem):
        return best_of_equal_blocks(problem, pace, limit, any_will_do)
    best: Split | None = None
    for end in pareto_splits(problem):
        seconds = pace.seconds(end.slowest, end.total)
        split = Split(seconds, end.total, end.slowest, end.order, end.counts)
        if seconds <= limit * (1 + EPSILON) and split.is_better_than(best):
            best = split
    return best


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
                for first, last in chain_ends(num_devices)
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
