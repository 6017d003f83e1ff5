"""A grouping to begin a search with, out of the groups behind the bound. Pure.

The linear program of `planner.group_bound` shares the time of groups that overlap. Made to
choose whole groups that do not, it gives a grouping near the bound, in a fog of many devices
a better one than a search from chance finds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from planner.group_bound import Columns, Market
from planner.prices import best_packing
from planner.replicas import Fog

# The integer program chooses among so many groups, those that earn most for their price.
_MOST_GROUPS: Final = 1200


def packed_grouping(fog: Fog, market: Market) -> list[list[int]]:
    """Return replicas as lists of device indexes; none where nothing was found."""
    for kinds in market.groups:
        devices = _devices(fog, [kinds])
        fog.options(sum(1 << device for group in devices for device in group))
    columns = Columns(fog, fog.evaluated(), market.among)
    best = columns.dearest(market.prices, _MOST_GROUPS)
    chosen = best_packing(columns.device_counts, best)
    members = [[k for k, n in enumerate(c.counts) for _ in range(n)] for c in chosen]
    return _devices(fog, members)


def _devices(fog: Fog, groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return groups of kinds as groups of devices, the lowest of each kind first."""
    left: defaultdict[int, list[int]] = defaultdict(list)
    for device in reversed(range(fog.num_devices)):
        left[fog.kinds[device]].append(device)
    return [[left[kind].pop() for kind in group] for group in groups]
