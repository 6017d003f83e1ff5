"""The order of a ring's stages where the ways between devices differ. Pure.

Over one broker every order costs the same. With a matrix of ways the order is part of the
plan: the shortest ring, found exactly by dynamic programming over subsets of devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple


class Route(NamedTuple):
    """A ring through all devices of a group.

    Attributes:
        seconds: Sum of its hops, the one that closes the ring included.
        order: [N], device indexes.
    """

    seconds: float
    order: tuple[int, ...]


def ring_seconds(hops: Sequence[Sequence[float]], order: Sequence[int]) -> float:
    """Return the sum of a ring's hops, the closing one included; 0 without a matrix."""
    return sum(hops[order[i - 1]][to] for i, to in enumerate(order)) if hops else 0.0


def shortest_ring(hops: Sequence[Sequence[float]], first: int, last: int) -> Route:
    """Return the shortest ring that begins at ``first`` and closes from ``last``.

    Args:
        hops: [N][N], seconds from one device to another.
        first: Device at the beginning.
        last: Device at the end; if it is ``first``, any device may be there.

    Time O(2^N N^2), the program of Held and Karp. Equal rings: the first in order.
    """
    num_devices = len(hops)
    if num_devices == 1:
        return Route(0.0, (0,))
    everyone = (1 << num_devices) - 1
    # Set of devices passed and the one reached to the best way there.
    ways: dict[tuple[int, int], Route] = {(1 << first, first): Route(0.0, (first,))}
    for used in range(1, everyone):
        for at in range(num_devices):
            way = ways.get((used, at))
            if way is None:
                continue
            for to in range(num_devices):
                both = used | 1 << to
                if used >> to & 1 or (to == last and both != everyone):
                    continue
                longer = Route(way.seconds + hops[at][to], (*way.order, to))
                known = ways.get((both, to))
                if known is None or longer < known:
                    ways[both, to] = longer
    best = Route(inf, ())
    for at in range(num_devices):
        way = ways.get((everyone, at))
        if way is not None and (at == last or first == last):
            best = min(best, Route(way.seconds + hops[at][first], way.order))
    return best
