"""The exact optimum of a small fog: every grouping, idle devices included. Pure."""

from __future__ import annotations

from planner.groupings.search import NOTHING, Groupings, GroupTable, Solution
from planner.model import Roles
from planner.roles import MAX_ENUMERATED, Score


def enumerate_groupings(
    fog: GroupTable, roles: Roles, groupings: Groupings | None = None
) -> Solution:
    """Return the best of all groupings of the fog's devices.

    There are Bell(n + 1) of them for n devices, the idle ones forming a group of their own:
    877 for six, 4140 for seven, 21147 for eight. Groups that cannot hold the model cut
    whole branches. Equal scores go to the first grouping in order of device ids.
    """
    groupings = Groupings(fog, roles) if groupings is None else groupings
    groupings.max_enumerated = MAX_ENUMERATED
    best = NOTHING
    best_with: dict[int, Score] = {}
    num_compared = 0

    def walk(left: int, groups: tuple[int, ...]) -> None:
        nonlocal best, num_compared
        if left:
            lowest = left & -left
            rest = left ^ lowest
            # Every subset of the rest joins the lowest device, from all of it to none.
            others = rest
            while True:
                if fog.options(lowest | others) is not None:
                    walk(rest & ~others, (*groups, lowest | others))
                if not others:
                    break
                others = (others - 1) & rest
            walk(rest, groups)
            return
        if not groups:
            return
        num_compared += 1
        found = groupings.solution(groups)
        if found.score < best.score:
            best = found
        for member in found.members:
            for device in member.performance.devices:
                if device not in best_with or found.score < best_with[device]:
                    best_with[device] = found.score

    walk((1 << fog.num_devices) - 1, ())
    return Solution(best.score, best.members, num_compared, best_with)
