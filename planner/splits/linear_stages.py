"""Groups of devices whose stages' times are lines, evaluated fast and exactly. Pure.

The usual case: all blocks alike, everything in the devices' own memory, all hops over one
broker. A stage of ``c`` layers then takes ``base + c * rate``, and the tables from which a
group is evaluated depend on its devices one by one; they are made once per fog, where
`planner.splits.partition` makes them once per group. Both find splits of equal value (a test
compares them); here it takes a tenth of the time, and the search asks for many thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import inf
from typing import Final, NamedTuple

from planner.cost import DeviceCost, PhaseCost
from planner.model import ModelSpec
from planner.splits.split import EPSILON, Pace, Split

# Rates this small make no difference to any sum, and need no case of their own.
_LEAST_RATE: Final = 1e-15


class _Times(NamedTuple):
    """[N] each: seconds per layer and layers per second, of the embedding, of the head."""

    rates: list[float]
    speeds: list[float]
    firsts: list[float]
    lasts: list[float]


class _Fits(NamedTuple):
    """[N] each: most layers of a stage in the middle, first, last, or alone."""

    middle: list[int]
    first: list[int]
    last: list[int]
    alone: list[int]


class _Found(NamedTuple):
    """The least total under a slowest stage: [M] layers by position, and the ends."""

    total: float
    slowest: float
    first: int
    last: int
    counts: list[int]


class LinearStages:
    """Tables over all devices of a fog, and the best splits of its groups."""

    def __init__(self, costs: Sequence[DeviceCost], model: ModelSpec) -> None:
        self._costs = costs
        self._model = model
        self._num_layers = model.num_layers
        self._prefill = _times([cost.prefill for cost in costs])
        num_rows = len(costs[0].decode) if costs else 0
        self._decode = [_times([cost.decode[row] for cost in costs]) for row in range(num_rows)]
        self._fits: dict[int, _Fits] = {}
        self._last_members: tuple[int, ...] = ()
        self._chains: dict[int | None, _Chain] = {}

    @staticmethod
    def describes(costs: Sequence[DeviceCost], model: ModelSpec) -> bool:
        """Whether every stage's time and memory are lines over its layers, in any order."""
        phases = [phase for cost in costs for phase in (cost.prefill, *cost.decode)]
        return (
            len(set(model.block_bytes)) == 1
            and len(set(model.kv_bytes)) == 1
            and not any(cost.host_memory_bytes or cost.peers for cost in costs)
            and all(len(set(phase.layers)) == 1 for phase in phases)
        )

    def most_layers(self, members: Sequence[int], kv_tokens: int) -> int:
        """Return how many layers fit into the members at most, ends not counted."""
        middle = self._fits_for(kv_tokens).middle
        return sum([max(middle[d], 0) for d in members])

    def best_split(
        self,
        members: Sequence[int],
        rows: int | None,
        kv_tokens: int,
        pace: Pace,
        limit: float = inf,
    ) -> Split | None:
        """As `planner.splits.partition.best_split`, for some devices of the fog.

        Args:
            members: Device indexes; those of the answer's order are positions in it.
            rows: Rows of a decode step; None for prefill.
            kv_tokens: KV positions for which every stage has room.
            pace: What is to be made small.
            limit: Splits with a larger value do not count.
        """
        if len(members) == 1:
            times = self._prefill if rows is None else self._decode[rows - 1]
            return self._alone(members[0], times, self._fits_for(kv_tokens), pace, limit)
        if len(members) > self._num_layers:
            return None
        chain = self._chain(members, rows)
        if chain.least_seconds(pace) > limit * (1 + EPSILON):
            return None
        return _Group(members, chain, self._fits_for(kv_tokens), pace).best(limit)

    def _chain(self, members: Sequence[int], rows: int | None) -> _Chain:
        """Return what does not depend on memory; the same members are asked for in a row."""
        known = tuple(members)
        if known != self._last_members:
            self._last_members = known
            self._chains.clear()
        chain = self._chains.get(rows)
        if chain is None:
            times = self._prefill if rows is None else self._decode[rows - 1]
            chain = self._chains[rows] = _Chain(known, times, self._num_layers)
        return chain

    def _alone(
        self, device: int, times: _Times, fits: _Fits, pace: Pace, limit: float
    ) -> Split | None:
        if fits.alone[device] < self._num_layers:
            return None
        total = times.firsts[device] + times.lasts[device] + self._num_layers * times.rates[device]
        seconds = pace.seconds(total, total)
        if seconds > limit * (1 + EPSILON):
            return None
        return Split(seconds, total, total, (0,), (self._num_layers,), (0,))

    def _fits_for(self, kv_tokens: int) -> _Fits:
        fits = self._fits.get(kv_tokens)
        if fits is None:
            model = self._model
            size = max(model.block_bytes[0] + kv_tokens * model.kv_bytes[0], 1)
            both = model.embedding_bytes + model.head_bytes - model.shared_bytes
            ends = (0, model.embedding_bytes, model.head_bytes, both)
            fits = self._fits[kv_tokens] = _Fits(
                *(
                    [
                        (cost.memory_bytes - held) // size
                        if cost.owner.holds_text or place == 0
                        else 0
                        for cost in self._costs
                    ]
                    for place, held in enumerate(ends)
                )
            )
        return fits


def _times(phases: Sequence[PhaseCost]) -> _Times:
    rates = [max(phase.layers[0], _LEAST_RATE) for phase in phases]
    return _Times(
        rates,
        [1 / rate for rate in rates],
        [phase.embedding for phase in phases],
        [phase.head for phase in phases],
    )


class _Chain:
    """Times of some devices in one phase; devices are positions in the group from here on."""

    def __init__(self, members: Sequence[int], times: _Times, num_layers: int) -> None:
        self.num_layers = num_layers
        self.rates = [times.rates[d] for d in members]
        self.speeds = [times.speeds[d] for d in members]
        self.firsts = [times.firsts[d] for d in members]
        self.lasts = [times.lasts[d] for d in members]
        self.least_slowest = self._least_slowest()
        self._least_total = num_layers * min(self.rates) + min(self.firsts) + min(self.lasts)

    def _least_slowest(self) -> float:
        """Return a time that the slowest stage has at least: layers cut anywhere."""
        first = min([end * speed for end, speed in zip(self.firsts, self.speeds, strict=True)])
        last = min([end * speed for end, speed in zip(self.lasts, self.speeds, strict=True)])
        return (self.num_layers + first + last) / sum(self.speeds)

    def least_seconds(self, pace: Pace) -> float:
        """Return what no split goes below, memory aside."""
        total = pace.weight * self._least_total + pace.extra_seconds
        return max(pace.laps * self.least_slowest, total)

    @cached_property
    def by_rate(self) -> list[int]:
        """Positions, the fastest first."""
        return sorted(range(len(self.rates)), key=self.rates.__getitem__)

    @cached_property
    def pairs(self) -> list[tuple[float, int, int]]:
        """What the ends cost, and which two devices have them; the least first."""
        positions = range(len(self.rates))
        return sorted(
            [(self.firsts[i] + self.lasts[j], i, j) for i in positions for j in positions if i != j]
        )


class _Group:
    """One group in one phase, with the layers that fit.

    For a given slowest stage, the least total gives as many layers as allowed to the fastest
    devices; which devices have the ends is tried in the order of what the ends cost, until
    no pair can be better any more.
    """

    def __init__(self, members: Sequence[int], chain: _Chain, fits: _Fits, pace: Pace) -> None:
        self.num_layers = num_layers = chain.num_layers
        self.chain = chain
        self.pace = pace
        # Every other device needs a layer too, so none can hold more than this.
        most = num_layers - len(members) + 1
        self.rates, self.firsts, self.lasts = chain.rates, chain.firsts, chain.lasts
        self.middle_fits = [min(fits.middle[d], most) for d in members]
        self.first_fits = [min(fits.first[d], most) for d in members]
        self.last_fits = [min(fits.last[d], most) for d in members]

    def best(self, limit: float) -> Split | None:
        """Return the best split within ``limit``, or None."""
        laps, weight, extra = self.pace.laps, self.pace.weight, self.pace.extra_seconds
        if min(self.middle_fits) < 1 or sum(self.middle_fits) < self.num_layers:
            return None
        least_total = self._fill(self.middle_fits) + self.chain.pairs[0][0]
        lower = max(laps * self.chain.least_slowest, weight * least_total + extra)
        if lower > limit * (1 + EPSILON):
            return None
        # No slowest stage under this one can give a better value.
        low = lower / laps
        best = self._within(low)
        value = self._value(best)
        if value <= lower * (1 + EPSILON):
            return self._split(best)
        high, widest = self._first_feasible(low, limit / laps, best)
        if widest is None:
            return None
        found = self._value(widest)
        if found < value:
            best, value = widest, found
        # A split with a slower slowest stage than this is worse than the best so far.
        high = min(high, value / laps)
        times = self._stage_times(low, high)
        left, right = 0, len(times)
        while left < right:
            middle = (left + right) // 2
            tried = self._within(times[middle])
            seconds = self._value(tried)
            if (seconds, tried.total if tried else inf) < (value, best.total if best else inf):
                best, value = tried, seconds
            # Beyond the time where the slowest stage decides, it only gets slower.
            if tried is not None and laps * times[middle] >= weight * tried.total + extra:
                right = middle
            else:
                left = middle + 1
        return self._split(best) if value <= limit * (1 + EPSILON) else None

    def _fill(self, caps: Sequence[int]) -> float:
        """Return the least total without ends with at most ``caps`` layers each."""
        left = self.num_layers - len(caps)
        total = sum(self.rates)
        for d in self.chain.by_rate:
            more = caps[d] - 1
            if more >= left:
                return total + left * self.rates[d]
            left -= more
            total += more * self.rates[d]
        return inf

    def _within(self, slowest: float) -> _Found | None:
        """Return the split of least total with no stage over ``slowest``; None if none."""
        rates, by_rate = self.rates, self.chain.by_rate
        # The small addend admits a stage that takes exactly ``slowest``.
        caps = [
            min(fit, int(slowest / rate + EPSILON))
            for fit, rate in zip(self.middle_fits, rates, strict=True)
        ]
        if min(caps) < 1 or sum(caps) < self.num_layers:
            return None
        least, room = self._fill(caps), sum(caps)
        spare = self.num_layers - len(caps)
        # Every device has one layer; the fastest get the spare ones.
        one_each = sum(rates)
        best: tuple[int, int, int, int] | None = None
        best_total = inf
        for ends, i, j in self.chain.pairs:
            if least + ends >= best_total:
                break
            first = min(self.first_fits[i], int((slowest - self.firsts[i]) / rates[i] + EPSILON))
            last = min(self.last_fits[j], int((slowest - self.lasts[j]) / rates[j] + EPSILON))
            if first < 1 or last < 1 or room - caps[i] - caps[j] + first + last < self.num_layers:
                continue
            left = spare
            total = ends + one_each
            for d in by_rate:
                more = (first if d == i else last if d == j else caps[d]) - 1
                if more >= left:
                    total += left * rates[d]
                    break
                left -= more
                total += more * rates[d]
            if total < best_total:
                best, best_total = (i, j, first, last), total
        return None if best is None else self._found(best, best_total, caps)

    def _found(self, ends: tuple[int, int, int, int], total: float, caps: list[int]) -> _Found:
        """Return the split with these ends, and the most layers that they can hold."""
        i, j, first, last = ends
        caps[i], caps[j] = first, last
        counts, left = [1] * len(caps), self.num_layers - len(caps)
        for d in self.chain.by_rate:
            more = min(caps[d] - 1, left)
            counts[d] += more
            left -= more
        stages = [count * rate for count, rate in zip(counts, self.rates, strict=True)]
        stages[i] += self.firsts[i]
        stages[j] += self.lasts[j]
        return _Found(total, max(stages), i, j, counts)

    def _first_feasible(
        self, low: float, high: float, known: _Found | None
    ) -> tuple[float, _Found | None]:
        """Return a time over ``low`` within which there is a split, at most ``high``."""
        if known is not None:
            return inf, known
        longest = max(
            [
                self.middle_fits[d] * rate + self.firsts[d] + self.lasts[d]
                for d, rate in enumerate(self.rates)
            ]
        )
        high = min(high, longest)
        time = low
        while time < high:
            time = min(time * 1.3, high)
            found = self._within(time)
            if found is not None:
                return time, found
        return high, None

    def _stage_times(self, low: float, high: float) -> list[float]:
        """Return every time in ``(low, high]`` that a stage may take."""
        times = set()
        for d, rate in enumerate(self.rates):
            for base in {0.0, self.firsts[d], self.lasts[d]}:
                begin = max(int((low - base) / rate), 1)
                end = min(int((high - base) / rate + EPSILON), self.middle_fits[d])
                times.update([base + count * rate for count in range(begin, end + 1)])
        return sorted([time for time in times if low < time <= high * (1 + EPSILON)])

    def _value(self, found: _Found | None) -> float:
        return inf if found is None else self.pace.seconds(found.slowest, found.total)

    def _split(self, found: _Found | None) -> Split | None:
        if found is None:
            return None
        middle = [d for d in range(len(found.counts)) if d not in (found.first, found.last)]
        order = (found.first, *middle, found.last)
        return Split(
            self._value(found),
            found.total,
            found.slowest,
            order,
            tuple([found.counts[d] for d in order]),
            (0,) * len(order),
        )
