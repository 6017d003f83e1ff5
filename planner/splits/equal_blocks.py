"""The fast and exact way to split a model whose blocks are all alike. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import inf
from typing import Final

from planner.splits.routes import Route, shortest_ring
from planner.splits.split import EPSILON, Pace, Split, SplitProblem, chain_ends

# Middle, first, last, both: the first stage before the others as they come, then the last.
_CHAIN_ORDER: Final = (1, 0, 2, 0)


def has_equal_blocks(problem: SplitProblem) -> bool:
    """Whether every layer weighs the same and takes the same time on each device."""
    offload = problem.offload
    moved = [offload.layer_bytes, *offload.extra_seconds] if offload else []
    rows = [problem.layer_bytes, *problem.layer_seconds, *moved]
    return all(len(set(row)) == 1 for row in rows)


def best_of_equal_blocks(problem: SplitProblem, pace: Pace, limit: float) -> Split | None:
    """Try each pair of ends; a stage's time is a table over the number of its layers.

    Most tables are lines, ``base + count * rate``; offloading bends them upwards. For a
    given slowest stage the least total puts as many layers as allowed on the devices of the
    best rate (with bent tables a small program over devices and layers finds it). As the
    allowed slowest stage grows, ``laps * slowest`` rises and that total falls, so a bisection
    over the stage times that can occur finds the best of the two. Time O(N^2 log(N L) N) at
    most for lines; most pairs are refused by one look.
    """
    group = _EqualBlocks(problem, pace)
    best: Split | None = None
    for first, last in chain_ends(len(group.rates), problem.ends):
        bound = limit if best is None else min(limit, best.seconds)
        if not group.may_reach(bound, first, last):
            continue
        candidate = group.best(bound, first, last)
        if candidate is not None and candidate.is_better_than(best):
            best = candidate
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
        self.hops = problem.hop_seconds
        self.rates = [problem.layer_seconds[d][0] for d in devices]
        # Every other device needs a layer too, so none can hold more than this.
        self.most = self.num_layers - len(devices) + 1
        self.size = max(problem.layer_bytes[0], 1)
        places = ((False, False), (True, False), (False, True), (True, True))
        self.rooms = [[problem.room_bytes(d, *place) for place in places] for d in devices]
        offload = problem.offload
        self.moved_size = offload.layer_bytes[0] if offload else 0
        self.hosts = offload.host_bytes if offload and self.moved_size else [0 for _ in devices]
        self.extras = [offload.extra_seconds[d][0] if offload else 0.0 for d in devices]
        self.is_bent = any(self.hosts)
        self.fits = [[self._fit(d, place) for place in range(4)] for d in devices]
        self.bases = [[problem.ends_seconds(d, *place) for place in places] for d in devices]
        self.by_rate = sorted(devices, key=lambda d: (self.rates[d], d))
        self._bound = -1.0
        self._caps: list[list[int]] = []
        self._num_full = 0
        self._sum = 0
        self._least_total = self._fill([row[0] for row in self.fits], 0.0)

    # --- tables over the number of layers -------------------------------------------------

    def _fit(self, device: int, place: int) -> int:
        """Return the most layers that fit, in host memory too; at most `most`."""
        fit = min(self.rooms[device][place] // self.size, self.most)
        if self.hosts[device]:
            while fit < self.most and self._holds(device, place, max(fit, 0) + 1):
                fit = max(fit, 0) + 1
        return fit

    def _holds(self, device: int, place: int, count: int) -> bool:
        moved = self.moved(device, place, count)
        return moved <= count and moved * self.moved_size <= self.hosts[device]

    def moved(self, device: int, place: int, count: int) -> int:
        """Return how many of ``count`` layers must have their part in host memory."""
        excess = count * self.size - self.rooms[device][place]
        return -(-excess // self.moved_size) if excess > 0 and self.moved_size else 0

    def stage(self, device: int, place: int, count: int) -> float:
        """Return the time of a stage."""
        seconds = self.bases[device][place] + count * self.rates[device]
        if self.is_bent:
            seconds += self.moved(device, place, count) * self.extras[device]
        return seconds

    def _cap(self, device: int, place: int, slowest: float) -> int:
        """Return the most layers with which a stage takes no longer than ``slowest``."""
        rate, base, fit = self.rates[device], self.bases[device][place], self.fits[device][place]
        if rate > 0:
            # The small addend admits a stage that takes exactly ``slowest``.
            cap = min(fit, int((slowest - base) / rate + EPSILON))
        else:
            cap = fit if base <= slowest else 0
        if not self.hosts[device] or cap < 1 or not self.moved(device, place, cap):
            return cap
        return (
            bisect_right(
                range(cap + 1),
                slowest * (1 + EPSILON),
                lo=1,
                key=lambda count: self.stage(device, place, count),
            )
            - 1
        )

    # --- quick refusal --------------------------------------------------------------------

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
        ends = [(first, 3)] if first == last else [(first, 1), (last, 2)]
        full, layers, total = self._num_full, self._sum, self._least_total
        for device, place in ends:
            caps = self._caps[device]
            if caps[place] < 1:
                return False
            full -= caps[0] < 1
            layers += caps[place] - caps[0]
            total += self.bases[device][place]
        if full > 0 or layers < self.num_layers:
            return False
        way = self.pace.weight * total + self.pace.extra_seconds
        return way <= bound * (1 + EPSILON)

    # --- the best split for given ends ----------------------------------------------------

    def best(self, limit: float, first: int, last: int) -> Split | None:
        """Return the best split with these ends whose value is within ``limit``."""
        places = [0] * len(self.rates)
        places[first] |= 1
        places[last] |= 2
        fits = [self.fits[d][place] for d, place in enumerate(places)]
        if min(fits) < 1 or sum(fits) < self.num_layers:
            return None
        route = self._route(first, last, places)
        if limit < inf:
            counts = self._counts_within(limit / self.pace.laps, places)
            if counts is None:
                return None
            if self._split(counts, places, route).seconds > limit * (1 + EPSILON):
                return None
        times = sorted(
            {
                self.stage(d, places[d], count)
                for d, fit in enumerate(fits)
                for count in range(1, fit + 1)
            }
        )
        low, high = 0, len(times) - 1
        while low < high:
            middle = (low + high) // 2
            if self._paces_all(times[middle], places, route):
                high = middle
            else:
                low = middle + 1
        # Just below, the way round the ring decides instead of the slowest stage.
        found = [
            self._split(counts, places, route)
            for time in times[max(low - 1, 0) : low + 1]
            if (counts := self._counts_within(time, places)) is not None
        ]
        best = min(found, default=None)
        return best if best is not None and best.seconds <= limit * (1 + EPSILON) else None

    def _route(self, first: int, last: int, places: Sequence[int]) -> Route:
        """Return the order of the stages: the shortest ring, or as the devices were given."""
        if self.hops:
            return shortest_ring(self.hops, first, last)
        order = sorted(range(len(places)), key=lambda d: _CHAIN_ORDER[places[d]])
        return Route(0.0, tuple(order))

    def _counts_within(self, slowest: float, places: Sequence[int]) -> list[int] | None:
        """Return the counts of least total with no stage over ``slowest``; None if none."""
        if self.is_bent:
            return self._bent_counts(slowest, places)
        counts, left = [1] * len(self.rates), self.num_layers - len(self.rates)
        for d in self.by_rate:
            cap = self._cap(d, places[d], slowest)
            if cap < 1:
                return None
            more = min(cap - 1, left)
            counts[d] += more
            left -= more
        return counts if left == 0 else None

    def _bent_counts(self, slowest: float, places: Sequence[int]) -> list[int] | None:
        """As `_counts_within`, by a program over devices and layers: any table will do."""
        caps = [self._cap(d, place, slowest) for d, place in enumerate(places)]
        if min(caps) < 1 or sum(caps) < self.num_layers:
            return None
        least = [0.0] + [inf] * self.num_layers
        choices: list[list[int]] = []
        for d, cap in enumerate(caps):
            stages = [self.stage(d, places[d], count) for count in range(cap + 1)]
            longer, chosen = [inf] * (self.num_layers + 1), [0] * (self.num_layers + 1)
            for placed, total in enumerate(least):
                if total == inf:
                    continue
                for count in range(1, min(cap, self.num_layers - placed) + 1):
                    if total + stages[count] < longer[placed + count]:
                        longer[placed + count] = total + stages[count]
                        chosen[placed + count] = count
            least = longer
            choices.append(chosen)
        counts, left = [], self.num_layers
        for chosen in reversed(choices):
            counts.append(chosen[left])
            left -= chosen[left]
        return counts[::-1]

    def _stages(self, counts: Sequence[int], places: Sequence[int]) -> list[float]:
        if self.is_bent:
            return [self.stage(d, places[d], count) for d, count in enumerate(counts)]
        return [self.bases[d][places[d]] + count * self.rates[d] for d, count in enumerate(counts)]

    def _split(self, counts: Sequence[int], places: Sequence[int], route: Route) -> Split:
        stages = self._stages(counts, places)
        slowest, total = max(stages), sum(stages) + route.seconds
        return Split(
            self.pace.seconds(slowest, total),
            total,
            slowest,
            route.order,
            tuple(counts[d] for d in route.order),
            tuple(self.moved(d, places[d], counts[d]) if self.is_bent else 0 for d in route.order),
        )

    def _paces_all(self, slowest: float, places: Sequence[int], route: Route) -> bool:
        counts = self._counts_within(slowest, places)
        if counts is None:
            return False
        pace = self.pace
        if pace.weight == 0 and pace.extra_seconds == 0:
            return True
        total = sum(self._stages(counts, places)) + route.seconds
        return pace.laps * slowest >= pace.weight * total + pace.extra_seconds
