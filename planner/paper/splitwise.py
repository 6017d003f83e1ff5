"""The paper's baseline: its own planner, and Splitwise's assumption about speeds. Pure.

The paper adapts Splitwise by one rule: every prefill replica performs at least as well as
every decode replica. It does not say what "performs" means for a decode replica that is a
pipeline, and the rule decides the plan, so each `Reading` of prefill speed is offered.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

from broker.plan import Role
from planner.paper.replicas import PaperFog, Reading
from planner.performance import Member

# Equal devices compare as equal: one published plan has an M2 Max on either side.
RULE_TOLERANCE: Final = 1e-9


def prefill_speed(fog: PaperFog, member: Member) -> float:
    """Return a replica's prompt tokens per second in the fog's reading."""
    performance = member.performance
    if fog.reading is Reading.SEPARATE_SPLIT:
        options = fog.options(sum(1 << device for device in performance.devices))
        performance = performance if options is None else options.prefill
    return performance.prefill_rate


def rule_slack(fog: PaperFog, members: Sequence[Member]) -> float:
    """Return by how much the slowest prefill replica is ahead of the fastest decode one.

    0.1 is ten per cent ahead, a negative number breaks the rule; infinite without either.
    """
    prefills = [prefill_speed(fog, m) for m in members if m.role is Role.PREFILL]
    decodes = [prefill_speed(fog, m) for m in members if m.role is Role.DECODE]
    return min(prefills) / max(decodes) - 1 if prefills and decodes else inf


class SplitwiseRule:
    """Admits plans whose prefill replicas are at least as fast as their decode replicas.

    A `planner.roles.RoleRule` for groups of one fog.
    """

    def __init__(self, fog: PaperFog) -> None:
        self.fog = fog

    def __call__(self, members: Sequence[Member]) -> bool:
        """Return whether the rule holds."""
        return rule_slack(self.fog, members) >= -RULE_TOLERANCE
