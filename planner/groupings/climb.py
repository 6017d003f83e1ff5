"""Local search over groupings: devices move and change places while that pays. Pure.

Optional, after the genetic algorithm. Two ways: `climb_by_worth` compares two groups at a
time by what they are worth at balanced prices, so that it is quick for hundreds of devices;
`climb_by_score` compares whole groupings by the objective itself, and also moves two devices
at once, which for a small fog is the last step to the optimum.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import Final

from planner.groupings.search import Groupings, Solution
from planner.groupings.worth import Worth, balanced_price
from planner.masks import members_of

# For each device so many other groups, and so many other devices, are looked at per round.
_WIDTH: Final = 24
# Gains under this part of the sum are rounding.
_LEAST_GAIN: Final = 1e-9
# Up to so many devices `climb_by_score` also moves two at a time.
_PAIR_DEVICES: Final = 16


def climb_by_worth(
    worth: Worth, groups: Iterable[int], num_devices: int, rng: random.Random, max_effort: int
) -> list[int]:
    """Return groups that are worth at least as much as the given ones at their own price.

    In random order each device makes the best of the moves and exchanges looked at: to
    another group, to a group of its own, to the idle ones, or in the place of another.
    It ends after a round in which they did not become worth more, or when the effort of
    `Worth` has grown by ``max_effort``.
    """
    return _Climb(worth, groups, num_devices).run(rng, worth.effort + max_effort)


class _Climb:
    """Groups at places; place 0 is for idle devices, others may become empty."""

    def __init__(self, worth: Worth, groups: Iterable[int], num_devices: int) -> None:
        self.worth = worth
        self.num_devices = num_devices
        useful = [group for group in groups if worth.holds_model(group)]
        idle = (1 << num_devices) - 1
        for group in useful:
            idle &= ~group
        self.places = [idle, *useful]
        self.home = [0] * num_devices
        for place, group in enumerate(self.places):
            for device in members_of(group):
                self.home[device] = place
        self.price = 0.5

    def run(self, rng: random.Random, until: int) -> list[int]:
        best, most = self.places[1:], 0.0
        while True:
            groups = self.places[1:]
            rates = [self.worth.rates(group) for group in groups]
            self.price = balanced_price(rates)
            earned = sum(found.at(self.price) for found in rates)
            # Prices move between rounds, so a round may lead back to where another began.
            if earned <= most * (1 + _LEAST_GAIN):
                return best
            best, most = groups, earned
            for device in rng.sample(range(self.num_devices), self.num_devices):
                if self.worth.effort >= until:
                    break
                self._improve(device, rng)
            self._close_up()

    def _value(self, place: int, group: int) -> float:
        return self.worth.rates(group).at(self.price) if place else 0.0

    def _improve(self, device: int, rng: random.Random) -> None:
        """Make the best change for a device, if there is one that pays."""
        places, here = self.places, self.home[device]
        bit, group = 1 << device, self.places[here]
        before = self._value(here, group)
        without = self._value(here, group ^ bit)
        best, best_swap, best_place = before * _LEAST_GAIN, -1, -1
        for place in self._targets(here, rng):
            other = places[place] if place < len(places) else 0
            gain = self._value(place, other | bit) - self._value(place, other) + without - before
            if gain > best:
                best, best_swap, best_place = gain, -1, place
        for partner in self._partners(here, rng):
            place, other_bit = self.home[partner], 1 << partner
            other = places[place]
            gain = self._value(here, group ^ bit | other_bit) - before
            gain += self._value(place, other ^ other_bit | bit) - self._value(place, other)
            if gain > best:
                best, best_swap, best_place = gain, partner, place
        if best_place < 0:
            return
        if best_place == len(places):
            places.append(0)
        self._move(device, best_place)
        if best_swap >= 0:
            self._move(best_swap, here)

    def _targets(self, here: int, rng: random.Random) -> list[int]:
        """Return places to move to; one past the last is a group of its own."""
        others = [p for p, group in enumerate(self.places) if p != here and (group or not p)]
        if len(others) > _WIDTH:
            others = rng.sample(others, _WIDTH)
        return [*others, len(self.places)]

    def _partners(self, here: int, rng: random.Random) -> Sequence[int]:
        others = [d for d, place in enumerate(self.home) if place != here]
        return rng.sample(others, _WIDTH) if len(others) > _WIDTH else others

    def _move(self, device: int, place: int) -> None:
        self.places[self.home[device]] ^= 1 << device
        self.places[place] |= 1 << device
        self.home[device] = place

    def _close_up(self) -> None:
        """Drop places that became empty."""
        self.places = [self.places[0], *(group for group in self.places[1:] if group)]
        for place, group in enumerate(self.places):
            for device in members_of(group):
                self.home[device] = place


def climb_by_score(
    groups: Sequence[int], num_devices: int, groupings: Groupings, max_groupings: int
) -> Solution:
    """Return the best use of groups after moving or swapping devices while that helps.

    It ends when nothing near is better, or ``max_groupings`` new groupings were scored.
    """
    until = len(groupings) + max_groupings
    best = groupings.solution(groups)
    idle = (1 << num_devices) - 1
    for group in groups:
        idle &= ~group
    places = [idle, *groups]
    improved = True
    while improved and len(groupings) < until:
        improved = False
        for candidate in _near(places, num_devices):
            found = groupings.solution(candidate[1:])
            if found.score < best.score:
                best, places, improved = found, candidate, True
                break
            if len(groupings) >= until:
                break
    return best


def _near(places: list[int], num_devices: int) -> Iterator[list[int]]:
    """Yield groupings near this one; the first group is the idle one and may be empty.

    One device goes to another group, or two change places, or two go to the same group: a
    replica often becomes possible, or worth while, with two devices only.
    """
    home = {d: g for g, group in enumerate(places) for d in members_of(group)}
    pairs = list(combinations(range(num_devices), 2))
    singles = [(device,) for device in range(num_devices)]
    for devices in [*singles, *(pairs if num_devices <= _PAIR_DEVICES else [])]:
        for target in range(len(places) + 1):
            if any(home[device] == target for device in devices):
                continue
            moved = [*places, 0]
            for device in devices:
                moved[home[device]] &= ~(1 << device)
                moved[target] |= 1 << device
            yield [moved[0], *(group for group in moved[1:] if group)]
    for one, other in pairs:
        if home[one] != home[other]:
            both = (1 << one) | (1 << other)
            swapped = list(places)
            swapped[home[one]] ^= both
            swapped[home[other]] ^= both
            yield swapped
