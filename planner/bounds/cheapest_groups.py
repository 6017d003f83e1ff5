"""The cheapest group of devices that carries a whole model at a given pace. Pure.

A covering knapsack with fixed charges, solved for many paces at once by one dynamic program
over devices and units of work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planner.bounds.stage_tables import FIRST, LAST, MIDDLE, PLACES, Floats, Ints

# A pipeline so far: neither end, with the first stage, with the last stage, with both. The
# bits of a state are the places FIRST and LAST.
_NUM_STATES = 4


class CheapestGroups:
    """For each of K paces, the group of two or more devices with the least price.

    A device in place ``p`` costs ``fixed[p]`` and ``slope`` for each unit, and takes at most
    ``most[p]`` units; one device is first, one last, any number are in the middle, and all
    units must be taken.

    For given members the best sharing fills them in the order of their slopes: all are full
    before one that takes the rest, and those after it take nothing. The program walks the
    devices in that order, which each pace has its own: ``opened`` is the least price by state
    and units taken while all are full, ``done`` by state once all units are taken. A member
    that takes nothing pays its fixed charge; real stages have a layer at least, so this only
    adds groups.

    Attributes:
        prices: [K], infinite where no group keeps the pace.
    """

    def __init__(
        self, counts: Sequence[int], most: Ints, fixed: Floats, slopes: Floats, num_units: int
    ) -> None:
        """Solve all K problems: time O(K Q) for every device.

        Args:
            counts: [N], devices of each kind.
            most: [N, 3, K]; 0 where a device cannot have the place.
            fixed: [N, 3, K].
            slopes: [N, K], at least 0.
            num_units: Units of the model, Q.
        """
        num_paces = slopes.shape[1]
        useful = [_useful(*each, num_units) for each in zip(counts, most, fixed, strict=True)]
        kinds = np.repeat(np.arange(len(counts)), useful)
        # [D, K], the kind of each pace's devices in the order of their slopes.
        self._kinds = kinds[np.argsort(slopes[kinds], axis=0, kind="stable")]
        paces = np.arange(num_paces)
        places = np.array(PLACES)[:, None]
        self._most = most[self._kinds[:, None, :], places, paces]
        self._fixed = np.where(
            self._most > 0, fixed[self._kinds[:, None, :], places, paces], np.inf
        )
        self._slopes = slopes[self._kinds, paces]
        self._units = np.arange(num_units)
        self._starts = paces[:, None] * num_units
        opened = np.full((_NUM_STATES, num_paces, num_units), np.inf)
        opened[0, :, 0] = 0.0
        self._opened = [opened]
        self._done = [np.full((_NUM_STATES, num_paces), np.inf)]
        for device in range(len(kinds)):
            self._walk(device)
        self.prices: Floats = self._done[-1][FIRST | LAST]

    def _walk(self, device: int) -> None:
        """Let one more device of each pace join, or not."""
        opened, done = self._opened[-1], self._done[-1]
        flat = opened.reshape(_NUM_STATES, -1)
        longer, ended = opened.copy(), done.copy()
        slope = self._slopes[device][:, None]
        left = len(self._units) - self._units
        rest = left * slope
        for place in PLACES:
            # A device that becomes an end finds its bit of the state unset.
            before = {MIDDLE: slice(None), FIRST: slice(0, None, 2), LAST: slice(0, 2)}[place]
            after = {MIDDLE: slice(None), FIRST: slice(1, None, 2), LAST: slice(2, None)}[place]
            most = self._most[device, place][:, None]
            fixed = self._fixed[device, place]
            unfilled = self._units - most
            price = np.where(unfilled >= 0, fixed[:, None] + most * slope, np.inf)
            taken = flat[before].take(self._starts + np.maximum(unfilled, 0), axis=1)
            np.minimum(longer[after], taken + price, out=longer[after])
            closing = np.where(left <= most, fixed[:, None] + rest, np.inf)
            closed = np.minimum((opened[before] + closing).min(axis=2), done[before] + fixed)
            np.minimum(ended[after], closed, out=ended[after])
        self._opened.append(longer)
        self._done.append(ended)

    def members(self, pace: int) -> list[int]:
        """Return the kinds of the cheapest group's devices; empty when there is none."""
        if not np.isfinite(self.prices[pace]):
            return []
        found: list[int] = []
        state, taken = FIRST | LAST, len(self._units)
        for device in reversed(range(len(self._kinds))):
            before = self._before(device, pace, state, taken)
            if before is not None:
                found.append(int(self._kinds[device, pace]))
                state, taken = before
        return found

    def _before(self, device: int, pace: int, state: int, taken: int) -> tuple[int, int] | None:
        """Return state and units taken before a device joined; None if it did not join."""
        num_units = len(self._units)
        opened, done = self._opened[device][:, pace], self._done[device][:, pace]
        is_done = taken == num_units
        if is_done:
            value, same = self._done[device + 1][state, pace], done[state]
        else:
            value, same = self._opened[device + 1][state, pace, taken], opened[state, taken]
        if value == same:
            return None
        slope = self._slopes[device, pace]
        for place in PLACES:
            if place != MIDDLE and not state & place:
                continue
            earlier = state & ~place
            most, fixed = int(self._most[device, place, pace]), self._fixed[device, place, pace]
            if not is_done:
                start = taken - most
                if most and start >= 0 and value == opened[earlier, start] + (fixed + most * slope):
                    return earlier, start
                continue
            if value == done[earlier] + fixed:
                return earlier, taken
            for units in range(1, most + 1):
                if value == opened[earlier, num_units - units] + (fixed + units * slope):
                    return earlier, num_units - units
        raise AssertionError("every price has a device that led to it")


def _useful(count: int, most: Ints, fixed: Floats, num_units: int) -> int:
    """Return how many of ``count`` equal devices can be of use: so many do it alone."""
    able = most > 0
    if not able.any():
        return 0
    if fixed.min() < 0:
        return count
    return min(count, max(2, -(-num_units // int(most[able].min()))))
