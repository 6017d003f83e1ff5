"""Which group of devices earns most for what it costs. Pure.

`planner.bound` asks for one number, a factor that no group exceeds, so everything here errs
on the side of a larger one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf, log
from typing import Final, NamedTuple

import numpy as np

from planner.bounds.cheapest_groups import CheapestGroups
from planner.bounds.offers import ALL_PLANS, Among, Offer, offers
from planner.bounds.stage_tables import PLACES, Floats, Ints
from planner.replicas import Fog

# The price of a second of a decode step, as a part of what the group earns in it: where the
# search for the best begins, the factor by which it goes on, and where it ends.
_SHARE: Final = 0.6
_STRIDE: Final = 3.0
_LEAST_SHARE: Final = 0.05
_CLOSE: Final = 1.1
_MAX_TRIES: Final = 8
# The ends of a bracket differ at first by this factor, and at last by less than that one.
_COARSE: Final = 1.3
_FINE: Final = 1.01
# Paces solved in one array.
_BATCH: Final = 96


@dataclass(frozen=True, slots=True)
class Prices:
    """What devices cost and requests are worth; see `planner.bound`.

    Attributes:
        devices: [N], all time of one device of each kind.
        prompt: One prompt; an answer is worth the rest, ``1 - prompt``.
    """

    devices: Floats
    prompt: float


class Column(NamedTuple):
    """A group of devices by the [N] counts of its kinds, and what it serves in one phase."""

    counts: Ints
    is_prefill: bool
    requests_per_second: float
    is_certain: bool = True


@dataclass(slots=True, eq=False)
class _Bracket:
    """Groups that run an offer with steps in ``(low, high]``.

    The limit on the sum of stages is priced instead of held (a Lagrangian relaxation): a
    group costs its devices and, for each second that its sum exceeds ``way``, some share of
    what it earns in a second; seconds below are a discount. Any share gives a valid least
    cost; the best is searched, down from groups that are fast and up from slow ones.

    Attributes:
        share: The best one known.
        least: What groups cost at least, at the prices of the ``asked``-th question.
        asked: -1 before the first.
        fast: Kinds of the devices of the cheapest group that kept the limit.
        slow: Of the one that did not, to be charged ``slow_least``.
    """

    offer: Offer
    low: float
    high: float
    share: float
    least: float = 0.0
    asked: int = -1
    fast: Sequence[int] = ()
    slow: Sequence[int] = ()
    slow_least: float = 0.0
    _below: float = 0.0
    _above: float = inf

    @property
    def way(self) -> float:
        """The longest sum of stages and hops."""
        return min(self.high, self.offer.limit)

    @property
    def is_wide(self) -> bool:
        return self.high > self.low * _FINE

    def earns(self, prices: Prices) -> float:
        """Return what they earn at most."""
        worth = prices.prompt if self.offer.is_prefill else 1 - prices.prompt
        return worth * self.offer.gain / self.low

    def halves(self) -> tuple[_Bracket, _Bracket]:
        middle = (self.low * min(self.high, 4 * self.low)) ** 0.5
        share = self.share if self.high < inf or self.offer.is_prefill else _SHARE
        return (
            _Bracket(self.offer, self.low, middle, share),
            _Bracket(self.offer, middle, self.high, self.share),
        )

    def ask(self, now: int) -> None:
        """Begin a search at new prices."""
        self.asked, self.least, self.fast, self.slow = now, 0.0, (), ()
        self._below, self._above = 0.0, inf

    def note(self, share: float, least: float, members: Sequence[int], price: float) -> None:
        """Take the cheapest group at a share: its devices, and what they cost by themselves."""
        if price < least * (1 - 1e-9):
            self._below, self.slow, self.slow_least = share, members, least
        else:
            self._above, self.fast = share, members
        if least > self.least:
            self.least, self.share = least, share

    def next_share(self) -> float | None:
        """Return what to try next; None when the best is known well enough."""
        if self._above == inf:
            return self._below * _STRIDE
        if self._above == 0.0 or self._above < self._below * _CLOSE:
            return None
        if self._below == 0.0:
            return self._above / _STRIDE if self._above > _LEAST_SHARE else 0.0
        return float((self._below * self._above) ** 0.5)


class Pricing:
    """All ways to run groups of two or more devices of a fog, and what they cost at least.

    The steps of each offer are cut into brackets: groups in one earn no more than at its
    low end, and cost no less than the cheapest group that keeps its high end. Brackets in
    which a group might earn more than it costs are halved until they are narrow.
    """

    def __init__(self, fog: Fog, among: Among = ALL_PLANS) -> None:
        kinds = fog.kinds
        devices = [kinds.index(kind) for kind in range(len(set(kinds)))]
        self.counts = [kinds.count(kind) for kind in range(len(devices))]
        self._brackets: list[_Bracket] = []
        self._asked: list[Floats] = []
        self.num_solved = 0
        if fog.model.num_layers > 1 and fog.num_devices > 1:
            for offer in offers(fog, devices, among):
                self._brackets += _cut(offer)

    def most(self, prices: Prices, enough: float = 1.0) -> tuple[float, list[Column]]:
        """Return a factor by which no group earns more than it costs, and what earns much.

        Factors up to ``enough`` need not be told apart.
        """
        now = len(self._asked)
        self._asked.append(prices.devices)
        ratios = {b: self._known_ratio(b, prices) for b in self._brackets}
        narrow = enough
        while True:
            top = max(ratios.values(), default=0.0)
            hot = [b for b, r in ratios.items() if r > narrow and r >= top * 0.97]
            old = [b for b in hot if b.asked < now]
            if not old:
                wide = [b for b in hot if b.is_wide]
                if not wide:
                    break
                for bracket in wide:
                    del ratios[bracket]
                    old += bracket.halves()
                hot = old
            self._solve(old, prices, now, enough, narrow)
            for bracket in old:
                ratios[bracket] = _ratio(bracket.earns(prices), bracket.least)
                if not bracket.is_wide:
                    narrow = max(narrow, ratios[bracket] * (1 - 1e-9))
        self._brackets = list(ratios)
        found = [b for b, r in ratios.items() if b.asked == now and r > enough and not b.is_wide]
        return top, [column for b in found for column in self._columns(b, prices)]

    def candidates(self) -> Iterator[tuple[int, ...]]:
        """Yield, by the kinds of their devices, the groups that the last answer hung on."""
        now = len(self._asked) - 1
        for bracket in self._brackets:
            if bracket.asked == now:
                yield from (tuple(sorted(g)) for g in (bracket.fast, bracket.slow) if g)

    def _columns(self, bracket: _Bracket, prices: Prices) -> Iterator[Column]:
        """Yield the groups for which the bracket's cost is so low, and what they serve."""
        rate = bracket.offer.gain / bracket.low
        if bracket.fast:
            yield Column(self._counts_of(bracket.fast), bracket.offer.is_prefill, rate)
        if bracket.slow:
            counts = self._counts_of(bracket.slow)
            # It serves less, by the factor by which its lateness makes it dearer.
            slower = float(counts @ prices.devices) / bracket.slow_least
            yield Column(counts, bracket.offer.is_prefill, rate * slower, False)

    def _counts_of(self, members: Sequence[int]) -> Ints:
        return np.bincount(members, minlength=len(self.counts))

    def _known_ratio(self, bracket: _Bracket, prices: Prices) -> float:
        """Return a bound from what was found at other prices: all changed by some factor."""
        if bracket.asked < 0:
            return inf
        before = self._asked[bracket.asked]
        factor = np.where(before > 0, prices.devices / np.maximum(before, 1e-300), inf).min()
        return _ratio(bracket.earns(prices), bracket.least * float(factor))

    def _solve(
        self, brackets: Sequence[_Bracket], prices: Prices, now: int, enough: float, most: float
    ) -> None:
        """Find the least cost of each bracket, exactly enough to tell it from ``enough``.

        Wide ones need only be told from ``most``, since they are halved if above it.
        """
        for bracket in brackets:
            bracket.ask(now)
        tasks = [(bracket, bracket.share) for bracket in brackets]
        for _ in range(_MAX_TRIES):
            self._try(tasks, prices)
            tasks = [
                (bracket, share)
                for bracket, _ in tasks
                if _ratio(bracket.earns(prices), bracket.least)
                > (most if bracket.is_wide else enough)
                and (share := bracket.next_share()) is not None
            ]

    def _try(self, tasks: Sequence[tuple[_Bracket, float]], prices: Prices) -> None:
        """Raise the least costs of brackets, with one price of time each."""
        by_units: defaultdict[int, list[tuple[_Bracket, float]]] = defaultdict(list)
        for task in tasks:
            by_units[task[0].offer.tables.num_units].append(task)
        for alike in by_units.values():
            for start in range(0, len(alike), _BATCH):
                self._run(alike[start : start + _BATCH], prices)

    def _run(self, tasks: Sequence[tuple[_Bracket, float]], prices: Prices) -> None:
        self.num_solved += len(tasks)
        by_offer: defaultdict[Offer, list[int]] = defaultdict(list)
        for position, (bracket, _) in enumerate(tasks):
            by_offer[bracket.offer].append(position)
        highs = np.array([bracket.high for bracket, _ in tasks])
        # Price of a second of a step.
        ways = [bracket.way for bracket, _ in tasks]
        second = np.array(
            [
                s * b.earns(prices) / way if s else 0.0
                for (b, s), way in zip(tasks, ways, strict=True)
            ]
        )
        shape = (len(self.counts), len(PLACES), len(tasks))
        most, fixed = np.zeros(shape, dtype=np.int64), np.zeros(shape)
        slopes = np.zeros((len(self.counts), len(tasks)))
        for offer, at in by_offer.items():
            most[:, :, at] = offer.most_units(highs[at])
            base = offer.tables.base_seconds + offer.hop_seconds[:, None]
            fixed[:, :, at] = base[:, :, None] * second[at]
            slopes[:, at] = offer.tables.unit_seconds[:, None] * second[at]
        fixed += prices.devices[:, None, None]
        num_units = tasks[0][0].offer.tables.num_units
        groups = CheapestGroups(self.counts, most, fixed, slopes, num_units)
        for position, (bracket, share) in enumerate(tasks):
            spent = ways[position] * second[position] if share else 0.0
            least = float(groups.prices[position]) - spent
            members = groups.members(position) if bracket.earns(prices) > least else []
            price = float(prices.devices[members].sum()) if members else inf
            bracket.note(share, least, members, price)


def _ratio(earned: float, cost: float) -> float:
    if earned <= 0:
        return 0.0
    return earned / cost if cost > 0 else inf


def _cut(offer: Offer) -> list[_Bracket]:
    shortest, longest = offer.paces()
    if shortest >= longest:
        return []
    num = max(ceil(log(longest / shortest) / log(_COARSE)), 1)
    cuts = [float(cut) for cut in np.geomspace(shortest, longest, num + 1)]
    if not offer.is_prefill and offer.limit == inf:
        cuts.append(inf)
    return [
        _Bracket(offer, low, high, 0.0 if offer.is_prefill or high == inf else _SHARE)
        for low, high in pairwise(cuts)
    ]
