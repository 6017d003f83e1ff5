"""How good a plan of a small fog is, in words: certified optimal, or how far from that at most.

Pure. All groupings were compared, each group with the splits that compute fastest.
`planner.bounds.all_splits` says what no other split of any grouping exceeds.
"""

from __future__ import annotations

from math import ceil
from typing import Final

from planner.bounds.all_splits import ROUNDING, AllSplits
from planner.bounds.violations import is_exceeded
from planner.flow import flow_of
from planner.groupings.search import Groupings, Solution
from planner.replicas import Fog

# A gap is said to a tenth of a percent, and never too small.
_STEPS: Final = 1000


def certificate(fog: Fog, groupings: Groupings, best: Solution, how: str) -> str:
    """Return how good the best of all groupings is; empty where there is none.

    Certified is the score up to ``objective_seconds``: no plan has fewer seconds per request,
    or is better in what comes before them (`planner.roles.Score`), whatever its splits. Ties
    are broken among the fastest splits only.

    Args:
        fog: The devices.
        groupings: All of them, scored.
        best: What came out.
        how: Of it, in words, such as ``the best of 51 groupings``.
    """
    if not best.members:
        return ""
    every = AllSplits(fog, groupings)
    what = " within the targets" if fog.objective.has_targets else ""
    rate = fog.terms.good_rate(best.members, flow_of(best.members, fog.workload, fog.terms))
    begin = f"{how} with the fastest splits"
    if not every.has_all_orders:
        begin += ", orders of more than five devices by heuristic"
    begin += f": {rate:.3g} requests per second{what}" if rate > 0 else f": no request{what}"
    if not every.is_known:
        return begin
    groups = [sum(1 << d for d in member.performance.devices) for member in best.members]
    own = every.rate(groups, [member.role for member in best.members])
    most, is_first = every.ceiling(groups, best.score)
    if is_exceeded(rate, own):
        return f"{begin}, more than the {own:.3g} that any split could, which is wrong"
    if is_first and best.score.objective_seconds * most <= 1 + ROUNDING:
        return f"certified optimal: {how}"
    gap = ceil(max(1 - rate / most - ROUNDING, 0.0) * _STEPS) / _STEPS
    if not gap:
        return f"{begin}, which no split exceeds"
    return f"{begin}, at most {gap * 100:.3g} % below what any split could"
