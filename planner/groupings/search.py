"""What the genetic algorithm and the oracle search through: groupings of devices. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from broker.plan import Role
from planner.cost import DeviceCost
from planner.model import Objective, Roles, Workload
from planner.performance import Member, Options
from planner.rival import Part, Rival, Times
from planner.roles import MAX_ENUMERATED, WORST, RoleRule, Score, choose_roles, score
from planner.terms import Terms

# Assignments of roles that take no longer to enumerate than a group to evaluate.
_FEW: Final = 64


class GroupTable(Protocol):
    """What a search needs to know of a fog: what each group of its devices is worth.

    `planner.replicas.Fog` is one by our formulas, `planner.paper.replicas.PaperFog` by those
    of the paper.
    """

    @property
    def workload(self) -> Workload:
        """The requests that are planned for."""

    @property
    def objective(self) -> Objective:
        """What makes a plan better, and how hard to look."""

    @property
    def num_devices(self) -> int:
        """Devices, usable or not."""

    @property
    def costs(self) -> Sequence[DeviceCost]:
        """[N], what each device needs for the layers of the model."""

    @property
    def terms(self) -> Terms | None:
        """What the objective adds to the paper's; None for nothing."""

    def options(self, group: int) -> Options | None:
        """Return what a group (a bit mask) is worth; None when the model does not fit in it."""


def best_single(table: GroupTable) -> Member | None:
    """Return the best device that holds the whole model within its memory, doing both."""
    options = [table.options(1 << device) for device in range(table.num_devices)]
    alone = [
        Member(Role.BOTH, option.both)
        for option in options
        if option is not None and Role.BOTH in option.roles
    ]
    return min(alone, key=lambda m: _alone(table, m), default=None)


def rival_of(table: GroupTable) -> Rival | None:
    """Return what no plan should be behind; None where the objective is the paper's alone."""
    if table.terms is None or (single := best_single(table)) is None:
        return None
    found, alone = _alone(table, single), single.performance
    rate = 1 / found.request_seconds
    return Rival(
        table.costs[alone.devices[0]].id,
        Times(
            found.num_slow,
            found.objective_seconds,
            found.request_seconds,
            [Part(alone.ttft_seconds, rate)],
            [Part(table.workload.answer_tokens * alone.tpot_seconds, rate)],
        ),
        table.objective.rival_load,
    )


def _alone(table: GroupTable, member: Member) -> Score:
    return score([member], table.workload, Roles.MIXED, table.terms)


@dataclass(frozen=True, slots=True)
class Solution:
    """Replicas and how good they are.

    Attributes:
        members: The replicas; devices in none of them are idle.
        num_compared: Groupings that were looked at to find this one.
        best_with: Device index to the best score of any grouping that uses the device; only
            from the oracle, and only for devices that some grouping can use.
    """

    score: Score
    members: tuple[Member, ...]
    num_compared: int = 1
    best_with: dict[int, Score] = field(default_factory=dict)


def max_enumerated(table: GroupTable) -> int:
    """Return up to how many assignments of roles are enumerated for each grouping.

    All that a small fog can have are, since exact enumeration of groupings shares these scores.
    """
    return MAX_ENUMERATED if table.num_devices <= table.objective.exact_devices else _FEW


class Groupings:
    """Scores of groupings for one fog and one choice of roles, each computed once.

    Attributes:
        rival: What no solution should be behind; None: nothing.
        max_enumerated: Up to so many assignments of roles are enumerated.
    """

    def __init__(self, fog: GroupTable, roles: Roles, rule: RoleRule | None = None) -> None:
        self.fog = fog
        self.roles = roles
        self.rule = rule
        self.rival = rival_of(fog)
        self.max_enumerated = max_enumerated(fog)
        self._scores: dict[tuple[int, ...], Solution] = {}

    def solution(self, groups: Iterable[int]) -> Solution:
        """Return the best use of a grouping; groups that cannot hold the model are idle."""
        usable = tuple(sorted(group for group in groups if self.fog.options(group) is not None))
        found = self._scores.get(usable)
        if found is None:
            options = [option for g in usable if (option := self.fog.options(g)) is not None]
            score, members = choose_roles(
                options,
                self.fog.workload,
                self.roles,
                self.rule,
                self.fog.terms,
                self.max_enumerated,
                self.rival,
            )
            found = self._scores[usable] = Solution(score, members)
        return found

    def seen(self) -> Iterable[tuple[int, ...]]:
        """Return every grouping that was scored so far, without the groups that were idle."""
        return self._scores.keys()

    def __len__(self) -> int:
        return len(self._scores)


NOTHING = Solution(WORST, (), 0)
"""The solution of a fog in which no group holds the model."""
