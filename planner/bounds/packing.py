"""Groupings to begin a search with, out of the groups behind the bound. Pure.

The linear program of `planner.bounds.group_bound` shares the time of groups that overlap. Made to
choose whole groups that do not, it gives a grouping near the bound, in a fog of many devices
a better one than a search from chance finds.

Where no plan should be behind the best device (`planner.rival`), a lone request may take only
so long on the slowest replicas of both phases: groups that take longer than their part of
that are left out. There is another packing then in which the best device is set apart, since
it answers lone requests as soon as it does alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import Final

from planner.bounds.group_bound import Columns, Market
from planner.bounds.prices import best_packing
from planner.groupings.search import rival_of
from planner.replicas import Fog

# The integer program chooses among so many groups, those that earn most for their price.
_MOST_GROUPS: Final = 1200


def packed_groupings(fog: Fog, market: Market) -> list[list[list[int]]]:
    """Return groupings, replicas as lists of device indexes; none where nothing was found."""
    for kinds in market.groups:
        devices = _devices(fog, [kinds])
        fog.options(sum(1 << device for group in devices for device in group))
    known = list(fog.evaluated())
    rival = rival_of(fog)
    if rival is None or rival.load is None:
        found = [_packed(fog, market, Columns.of_found(fog, known, market.among), [])]
    else:
        columns = Columns.of_found(fog, known, market.among, *rival.most_seconds(market.bound))
        device = next(i for i, cost in enumerate(fog.costs) if cost.id == rival.device)
        found = [_packed(fog, market, columns, apart) for apart in ([], [[fog.kinds[device]]])]
    return [grouping for grouping in found if grouping]


def _packed(fog: Fog, market: Market, columns: Columns, apart: list[list[int]]) -> list[list[int]]:
    """Return the best packing beside groups (by kinds) that are set apart."""
    counts = list(columns.device_counts)
    for kind in chain(*apart):
        counts[kind] -= 1
    best = columns.dearest(market.prices, _MOST_GROUPS)
    chosen = best_packing(counts, [column for column in best if not (column.counts > counts).any()])
    members = [[k for k, n in enumerate(c.counts) for _ in range(n)] for c in chosen]
    return _devices(fog, [*apart, *members]) if members else []


def _devices(fog: Fog, groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return groups of kinds as groups of devices, the lowest of each kind first."""
    left: defaultdict[int, list[int]] = defaultdict(list)
    for device in reversed(range(fog.num_devices)):
        left[fog.kinds[device]].append(device)
    return [[left[kind].pop() for kind in group] for group in groups]
