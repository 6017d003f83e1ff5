"""Groupings to begin a search with, out of the groups behind the bound. Pure.

The linear program of `planner.bounds.group_bound` shares the time of groups that overlap. Made to
choose whole groups that do not, it gives a grouping near the bound, in a fog of many devices
a better one than a search from chance finds.

Where no plan should be behind the best device (`planner.rival`), a lone request may take only
so long on the slowest replicas of both phases. Then there is a packing for each of a few
divisions of that time: of groups that prefill, and of groups that decode, within their part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import inf
from typing import Final

from planner.bounds.group_bound import Columns, Market
from planner.bounds.prices import best_packing
from planner.groupings.search import rival_of
from planner.replicas import Fog

# The integer program chooses among so many groups, those that earn most for their price.
_MOST_GROUPS: Final = 1200
# Parts of a lone request's time that prefill may take.
_PREFILL_PARTS: Final = (0.1, 0.2, 0.3, 0.4)


def packed_groupings(fog: Fog, market: Market) -> list[list[list[int]]]:
    """Return groupings, replicas as lists of device indexes; none where nothing was found."""
    for kinds in market.groups:
        devices = _devices(fog, [kinds])
        fog.options(sum(1 << device for group in devices for device in group))
    known = list(fog.evaluated())
    rival = rival_of(fog)
    times = [(inf, inf)]
    if rival is not None and rival.load is not None:
        longest = rival.most_times(market.bound) * rival.latency
        times = [(part * longest, (1 - part) * longest) for part in _PREFILL_PARTS]
    found = []
    for prefill, decode in times:
        columns = Columns(fog, known, market.among, prefill, decode)
        best = columns.dearest(market.prices, _MOST_GROUPS)
        chosen = best_packing(columns.device_counts, best)
        members = [[k for k, n in enumerate(c.counts) for _ in range(n)] for c in chosen]
        if members:
            found.append(_devices(fog, members))
    return found


def _devices(fog: Fog, groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return groups of kinds as groups of devices, the lowest of each kind first."""
    left: defaultdict[int, list[int]] = defaultdict(list)
    for device in reversed(range(fog.num_devices)):
        left[fog.kinds[device]].append(device)
    return [[left[kind].pop() for kind in group] for group in groups]
