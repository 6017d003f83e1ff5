"""Exact splits of a model's layers over one group of devices. Pure.

Order matters only through the ends: the first stage also holds the embedding and the last
one the head (the paper's master rule, with both ends free to be on different devices; or
literally, with both on one). Hops add up to the same whatever the order, since every message
passes the broker; only where a matrix of direct ways says otherwise is the order searched.

Two numbers of a split decide everything: its slowest stage and the sum of its stages. A
`Pace` turns them into the seconds that are to be made small. Equal blocks, the usual case,
have a fast exact way of their own; unequal ones a dynamic program over subsets of devices.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate, permutations
from math import inf
from typing import Final, NamedTuple

from planner.splits.equal_blocks import best_of_equal_blocks, has_equal_blocks
from planner.splits.routes import ring_seconds, shortest_ring
from planner.splits.split import EPSILON, Ends, Pace, Split, SplitProblem, chain_ends

# Up to here the program for unequal blocks tries every order, through subsets of devices
# (time 2^N N L^2); beyond, every pair of ends with the others in the given order.
MAX_SUBSET_DEVICES: Final = 8
# A group of more devices with a pinned one has no split: which order fits the pins is not asked.
# With a matrix of hops every order is tried on its own, up to here (time N! N L^2); beyond,
# the shortest ring for every pair of ends.
MAX_ORDERED_DEVICES: Final = 5


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
    if problem.pinned and num_devices > MAX_SUBSET_DEVICES:
        return None
    if has_equal_blocks(problem) and not problem.pinned:
        return best_of_equal_blocks(problem, pace, limit)
    return best_end(pareto_splits(problem), pace, limit)


def best_end(ends: Sequence[End], pace: Pace, limit: float) -> Split | None:
    """Return the best of the splits of `pareto_splits` by a pace, if any is within ``limit``."""
    best: Split | None = None
    for end in ends:
        split = Split(pace.seconds(end.slowest, end.total), *end)
        if split.seconds <= limit * (1 + EPSILON) and split.is_better_than(best):
            best = split
    return best


def fits(problem: SplitProblem, split: Split) -> bool:
    """Whether the stages of a split have memory for a problem, with no more in host memory."""
    tables = _Tables(problem)
    start, num_layers = 0, len(problem.layer_bytes)
    for device, count, offloads in zip(split.order, split.counts, split.offloads, strict=True):
        end = start + count
        is_master = device == split.order[0]
        chain = start == 0, end == num_layers
        held = (is_master, is_master) if problem.ends is Ends.MASTER else chain
        if tables.moved(device, start, end, problem.room_bytes(device, *held)) != offloads:
            return False
        start = end
    return True


class End(NamedTuple):
    """A split of the first layers, or of all; fields in the order of `Split`."""

    total: float
    slowest: float
    order: tuple[int, ...]
    counts: tuple[int, ...]
    offloads: tuple[int, ...]


_Fronts = dict[int, list[End]]
"""Number of layers placed to the Pareto front of (slowest, total)."""

_START: Final[_Fronts] = {0: [End(0.0, 0.0, (), (), ())]}


def pareto_splits(problem: SplitProblem) -> list[End]:
    """Return the splits of which none is better in both slowest stage and sum of stages.

    A dynamic program over the set of devices used and the number of layers placed. It is
    exact for any pace, since every pace grows with both numbers: a dominated beginning
    never becomes better than the one that dominates it. With a matrix of hops each order
    has a front of its own.
    """
    num_devices = len(problem.memory_bytes)
    tables = _Tables(problem)
    if problem.hop_seconds or num_devices > MAX_SUBSET_DEVICES:
        return _pruned([end for order in _orders(problem) for end in _chain(tables, order)])
    if problem.ends is Ends.MASTER:
        return _pruned([end for d in range(num_devices) for end in _subsets(tables, d)])
    return _subsets(tables, None)


def _subsets(tables: _Tables, master: int | None) -> list[End]:
    num_devices = len(tables.problem.memory_bytes)
    everyone = (1 << num_devices) - 1
    fronts: dict[int, _Fronts] = {0: _START}
    for used in range(1, everyone + 1):
        merged: dict[int, list[End]] = {}
        for device in range(num_devices):
            # The master comes first, so that the ring closes where it began.
            allowed = master is None or (device == master) == (used == 1 << master)
            if used >> device & 1 and allowed:
                before = fronts[used & ~(1 << device)]
                longer = tables.extended(before, device, used == everyone, master)
                for placed, ends in longer.items():
                    merged.setdefault(placed, []).extend(ends)
        fronts[used] = {placed: _pruned(ends) for placed, ends in merged.items()}
        if master is not None and not used >> master & 1:
            fronts[used] = {}
    return fronts[everyone].get(len(tables.problem.layer_bytes), [])


def _orders(problem: SplitProblem) -> Iterator[tuple[int, ...]]:
    num_devices = len(problem.memory_bytes)
    if problem.hop_seconds and num_devices <= MAX_ORDERED_DEVICES:
        yield from permutations(range(num_devices))
        return
    for first, last in chain_ends(num_devices, problem.ends):
        if problem.hop_seconds:
            yield shortest_ring(problem.hop_seconds, first, last).order
        else:
            middle = tuple(d for d in range(num_devices) if d not in (first, last))
            yield (first, *middle, last) if first != last else (first, *middle)


def _chain(tables: _Tables, order: Sequence[int]) -> list[End]:
    fronts = _START
    master = order[0] if tables.problem.ends is Ends.MASTER else None
    for device in order:
        fronts = tables.extended(fronts, device, device == order[-1], master)
    ring = ring_seconds(tables.problem.hop_seconds, order)
    ends = fronts.get(len(tables.problem.layer_bytes), [])
    return [end._replace(total=end.total + ring) for end in ends]


class _Tables:
    """Prefix sums of a problem, and the step of its dynamic program."""

    def __init__(self, problem: SplitProblem) -> None:
        self.problem = problem
        self.bytes_until = [0, *accumulate(problem.layer_bytes)]
        self.seconds_until = [[0.0, *accumulate(row)] for row in problem.layer_seconds]
        offload = problem.offload
        self.moved_until = [0, *accumulate(offload.layer_bytes)] if offload else []
        rows = offload.extra_seconds if offload else []
        self.extra_until = [[0.0, *accumulate(row)] for row in rows]

    def extended(self, fronts: _Fronts, device: int, is_last: bool, master: int | None) -> _Fronts:
        """Give ``device`` the next stage; the last one takes all layers that are left."""
        num_layers = len(self.problem.layer_bytes)
        longer: dict[int, list[End]] = {}
        for start, ends in fronts.items():
            held = (start == 0, is_last) if master is None else (device == master,) * 2
            room = self.problem.room_bytes(device, *held)
            base = self.problem.ends_seconds(device, *held)
            seconds = self.seconds_until[device]
            pin = self.problem.pinned.get(device)
            for end in range(num_layers if is_last else start + 1, num_layers + 1):
                if pin is not None and (start, end) != (pin.start, pin.end):
                    continue
                moved = self.moved(device, start, end, room) if end > start else None
                if moved is None:
                    break
                stage = base + seconds[end] - seconds[start]
                if moved:
                    extra = self.extra_until[device]
                    stage += extra[start + moved] - extra[start]
                longer.setdefault(end, []).extend(
                    End(
                        e.total + stage,
                        max(e.slowest, stage),
                        (*e.order, device),
                        (*e.counts, end - start),
                        (*e.offloads, moved),
                    )
                    for e in ends
                )
        return {placed: _pruned(found) for placed, found in longer.items()}

    def moved(self, device: int, start: int, end: int, room: int) -> int | None:
        """Return how many layers must go to host memory; None if that does not help."""
        excess = self.bytes_until[end] - self.bytes_until[start] - room
        if excess <= 0:
            return 0
        offload, moved = self.problem.offload, self.moved_until
        if offload is None or moved[end] - moved[start] < excess:
            return None
        count = bisect_left(moved, moved[start] + excess, start, end + 1) - start
        fits = moved[start + count] - moved[start] <= offload.host_bytes[device]
        return count if fits else None


def _pruned(ends: list[End]) -> list[End]:
    front: list[End] = []
    for end in sorted(ends, key=lambda end: (end.slowest, end.total, end.order, end.counts)):
        if not front or end.total < front[-1].total:
            front.append(end)
    return front
