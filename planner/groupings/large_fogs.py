"""Plans of fogs too large for enumeration: a bound, a packing, the genetic algorithm. Pure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from planner.bounds.group_bound import Market, market
from planner.bounds.offers import ALL_PLANS, Among
from planner.bounds.packing import packed_groupings
from planner.bounds.violations import is_exceeded
from planner.flow import flow_of
from planner.groupings.beginnings import beginnings
from planner.groupings.evolve import evolve
from planner.groupings.search import Groupings, Solution
from planner.groupings.worth import Worth
from planner.model import Roles
from planner.owner import PHASES
from planner.replicas import Fog

# Begun from a packing the genetic algorithm finds little more: its part of the usual effort.
_EFFORT_AFTER_PACKING: Final = 0.25
# Where all packings are behind the best device, so is mostly what else has separate roles, and
# mixed ones are looked for next.
_EFFORT_WHERE_BEHIND: Final = 0.02
# The bound on all plans is asked for where a plan is a last resort: a quick one will do.
_FEW_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True)
class Found:
    """A plan and the bound that holds among plans like it.

    Attributes:
        packed: Groupings that the search began with.
    """

    solution: Solution
    market: Market
    packed: list[list[list[int]]]


def search(
    fog: Fog,
    roles: Roles,
    seed: int,
    start: Sequence[Sequence[Sequence[int]]] = (),
    before: Found | None = None,
) -> Found:
    """Return the best plan found, and a bound.

    The bound is sought among plans that use roles as they should and give every stream
    ``min_tps``, which come before all others unless they are behind the best device
    (`planner.roles.Score`). Where the plan found is not of these, the bound is one on all
    plans.

    Args:
        fog: Of any size.
        roles: Which may be used.
        seed: Of the genetic algorithm.
        start: Groupings to begin with, as that of the running plan.
        before: What was found with other roles; the search goes on from there.
    """
    among = Among(is_separate=roles is not Roles.MIXED, keeps_min_tps=True)
    if before is None:
        # The genetic algorithm evaluates these groups anyway, and the bound is sooner low
        # when it knows some.
        beginnings(fog, Worth(fog), random.Random(seed))
        found = market(fog, among=among)
        packed = packed_groupings(fog, found)
    else:
        found = market(fog, _FEW_ROUNDS, among)
        packed = [*before.packed, *packed_groupings(fog, found)]
        members = before.solution.members
        packed.append([list(member.performance.devices) for member in members])
    groupings = Groupings(fog, roles)
    solution = evolve(
        fog,
        roles,
        seed,
        groupings,
        [*start, *packed],
        effort=_effort(groupings, packed),
        most=found.bound,
    )
    if solution.score.is_mixed or solution.score.num_slow:
        found = market(fog, _FEW_ROUNDS)
    return Found(solution, found, packed)


def _effort(groupings: Groupings, packed: Sequence[Sequence[Sequence[int]]]) -> float:
    """Return the part of its usual effort that the genetic algorithm is worth."""
    if not packed:
        return 1.0
    if groupings.roles is Roles.MIXED:
        return _EFFORT_AFTER_PACKING
    masks = [[sum(1 << device for device in group) for group in groups] for groups in packed]
    is_behind = all(groupings.solution(groups).score.is_behind for groups in masks)
    return _EFFORT_WHERE_BEHIND if is_behind else _EFFORT_AFTER_PACKING


def gap_in_words(fog: Fog, found: Found) -> str:
    """Return what a plan says of itself: how it was found, and how far from the bound it is."""
    members, most = found.solution.members, found.market.bound
    rate = fog.terms.good_rate(members, flow_of(members, fog.workload, fog.terms))
    what = " within the targets" if fog.objective.has_targets else ""
    begin = f"genetic algorithm, {found.solution.num_compared} groupings: "
    if rate <= 0:
        return f"{begin}no request{what}"
    meant = f"the bound of {most:.3g}{_meant(found.market.among)}{_owners_text(fog)}"
    begin += f"{rate:.3g} requests per second{what}, "
    if is_exceeded(rate, most):
        return f"{begin}more than {meant}, which is wrong"
    return f"{begin}{max(1 - rate / most, 0.0):.0%} below {meant}"


def _owners_text(fog: Fog) -> str:
    """Return in words that the bound may be too high because it leaves owners' limits out."""
    # What a share of a device can do is in its times.
    is_limited = any(
        cost.owner.phases != PHASES or not cost.owner.holds_text or cost.owner.layers is not None
        for cost in fog.costs
    )
    return ", which leaves out what owners allow" if is_limited else ""


def _meant(among: Among) -> str:
    """Return in words which plans the bound is about."""
    if among == ALL_PLANS:
        return ""
    separate = "separate roles and " if among.is_separate else ""
    return f" for plans with {separate}min_tps for every stream"
