"""The paper's four plans: as printed, and as our planner finds them under the calibration. Pure.

Everything here is exact: all groupings of the seven devices, idle ones included, with all
roles. The genetic algorithm runs on the same problem for whoever wants to compare.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil

from broker.plan import Role
from planner.flow import request_seconds
from planner.groupings.oracle import enumerate_groupings
from planner.groupings.search import Groupings, Solution
from planner.model import InfeasiblePlanError, Roles
from planner.paper.calibration import Calibration, load_calibration
from planner.paper.published import (
    PaperWorkload,
    Policy,
    PublishedPlan,
    PublishedReplica,
    load_published,
)
from planner.paper.replicas import PaperFog, Reading, StageTimes, step_seconds
from planner.paper.splitwise import SplitwiseRule, rule_slack
from planner.performance import Member, Performance


@dataclass(frozen=True, slots=True)
class PaperReplica:
    """A replica of a plan with all that a simulation of it needs.

    Attributes:
        stages: The master first. Their decode times contain the way into the stage, so a
            simulation adds no hops.
        slots: Requests decoded at once (N_Req).
        prefill_tokens_per_second: PS in the reading that was planned with.
    """

    role: Role
    stages: tuple[StageTimes, ...]
    slots: int
    prefill_tokens_per_second: float

    @property
    def devices(self) -> tuple[str, ...]:
        """Devices in stage order, the master first."""
        return tuple(stage.device for stage in self.stages)

    def tokens_per_second(self, num_requests: int) -> float:
        """Return what each of so many requests gets while they decode together."""
        return 1 / step_seconds(self.stages, num_requests)

    @property
    def decode_tokens_per_second(self) -> float:
        """DS: all slots together."""
        return self.slots * self.tokens_per_second(self.slots)


@dataclass(frozen=True, slots=True)
class PaperPlan:
    """A plan in the paper's terms.

    Attributes:
        objective_seconds: ``max(N_P / sum PS, N_D / sum DS)``, the paper's Equation 3.
        rule_slack: By how much the Splitwise rule holds; negative when it does not.
        idle: Devices in no replica.
    """

    workload: PaperWorkload
    policy: Policy
    reading: Reading
    objective_seconds: float
    rule_slack: float
    replicas: tuple[PaperReplica, ...]
    idle: tuple[str, ...] = ()

    @property
    def decoder_slots(self) -> int:
        """Requests decoded at once in the whole fog."""
        return sum(r.slots for r in self.replicas if r.role is Role.DECODE)

    def shape(self) -> list[tuple[str, list[tuple[str, int]]]]:
        """Return roles, kinds of devices and blocks: equal devices are not told apart."""
        names = load_calibration().names
        return sorted(
            (
                str(replica.role),
                sorted((names[stage.device], stage.num_blocks) for stage in replica.stages),
            )
            for replica in self.replicas
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """One of the four plans, three times.

    Attributes:
        best: The exact optimum.
        regrouped: The published groups and roles with our splits of them.
        literal: The published groups, roles and splits.
        num_groupings: Groupings that were compared for the optimum.
    """

    published: PublishedPlan
    best: PaperPlan
    regrouped: PaperPlan
    literal: PaperPlan
    num_groupings: int

    @property
    def is_published(self) -> bool:
        """Whether the optimum is the published plan, but for the names of equal devices."""
        return self.best.shape() == self.literal.shape()


@dataclass(frozen=True, slots=True)
class GroupComparison:
    """A decode group of the published plans.

    Attributes:
        slots: N_Req that our split of the group gets.
        literal_slots: N_Req with the published split.
        miss: By how much the group's speed would have to differ for our split to get the
            published slots: 0 when it does, 0.03 for 3 %.
    """

    published: PublishedReplica
    replica: PaperReplica
    literal: PaperReplica
    miss: float

    @property
    def slots(self) -> int:
        """Return what our split gets."""
        return self.replica.slots

    @property
    def literal_slots(self) -> int:
        """Return what the published split gets."""
        return self.literal.slots


@cache
def paper_fog(workload: PaperWorkload, reading: Reading = Reading.ONE_REQUEST) -> PaperFog:
    """Return the calibrated fog with one of the paper's workloads; one for all callers."""
    return fog_under(load_calibration(), workload, reading)


def fog_under(
    calibration: Calibration, workload: PaperWorkload, reading: Reading = Reading.ONE_REQUEST
) -> PaperFog:
    """Return the fog of another calibration."""
    means = load_published().workloads[workload]
    return PaperFog(calibration.devices, calibration.model, means, reading)


def groupings(fog: PaperFog, policy: Policy) -> Groupings:
    """Return what a search for the policy's plan goes through."""
    rule = SplitwiseRule(fog) if policy is Policy.ADAPTED_SPLITWISE else None
    return Groupings(fog, Roles.SEPARATE, rule)


def best_plan(
    workload: PaperWorkload, policy: Policy, reading: Reading = Reading.ONE_REQUEST
) -> PaperPlan:
    """Return the exact optimum of the paper's objective."""
    fog = paper_fog(workload, reading)
    found = enumerate_groupings(fog, Roles.SEPARATE, groupings(fog, policy))
    return _plan(fog, workload, policy, found.members)


def evolved_plan(
    workload: PaperWorkload,
    policy: Policy,
    seed: int,
    reading: Reading = Reading.ONE_REQUEST,
) -> PaperPlan:
    """Return what the genetic algorithm finds, as the paper does."""
    from planner.groupings.evolve import evolve  # Brings DEAP: only for those who call this.

    fog = paper_fog(workload, reading)
    found = evolve(fog, Roles.SEPARATE, seed, groupings(fog, policy))
    return _plan(fog, workload, policy, found.members)


def compare(
    workload: PaperWorkload,
    policy: Policy,
    reading: Reading = Reading.ONE_REQUEST,
    fog: PaperFog | None = None,
) -> Comparison:
    """Return the published plan beside the optimum under the same profile.

    ``fog`` is that of another calibration, in its own reading.

    Raises:
        InfeasiblePlanError: Under that one a published group does not hold the model.
    """
    fog = fog or paper_fog(workload, reading)
    published = load_published().plan(workload, policy)
    found: Solution = enumerate_groupings(fog, Roles.SEPARATE, groupings(fog, policy))
    regrouped = [Member(r.role, _best_of(fog, r)) for r in published.replicas]
    return Comparison(
        published=published,
        best=_plan(fog, workload, policy, found.members),
        regrouped=_plan(fog, workload, policy, regrouped),
        literal=printed_plan(fog, workload, policy),
        num_groupings=found.num_compared,
    )


def printed_plan(fog: PaperFog, workload: PaperWorkload, policy: Policy) -> PaperPlan:
    """Return the published groups, roles and splits with what they promise in a fog."""
    replicas = load_published().plan(workload, policy).replicas
    members = [Member(r.role, _as_published(fog, r)) for r in replicas]
    return _plan(fog, workload, policy, members)


def compare_groups(
    fogs: Mapping[PaperWorkload, PaperFog] | None = None,
) -> tuple[GroupComparison, ...]:
    """Return the different decode groups of the four published plans, equal devices merged.

    ``fogs`` are those of another calibration; raises as `compare` does.
    """
    names = load_calibration().names
    found: dict[tuple[str, ...], GroupComparison] = {}
    for plan in load_published().plans:
        fog = fogs[plan.workload] if fogs else paper_fog(plan.workload)
        for replica in plan.replicas:
            kinds = tuple(sorted(names[device] for device in replica.devices))
            if replica.role is Role.DECODE and kinds not in found:
                found[kinds] = _compared_group(fog, replica)
    return tuple(found.values())


def _compared_group(fog: PaperFog, published: PublishedReplica) -> GroupComparison:
    ours = _replica(fog, Member(Role.DECODE, _best_of(fog, published)))
    floor, size = fog.workload.min_tps, len(ours.stages)
    miss = 0.0
    if ours.slots < published.slots:
        rows = ceil(published.slots / size)
        miss = 1 - _best_speed(fog, published, rows) / floor
    elif ours.slots > published.slots:
        # One row more per micro-batch should have been too slow, and is not.
        rows = ceil((published.slots + 1) / size)
        miss = _best_speed(fog, published, rows) / floor - 1
    literal = _replica(fog, Member(Role.DECODE, _as_published(fog, published)))
    return GroupComparison(published, ours, literal, miss)


def _best_speed(fog: PaperFog, published: PublishedReplica, rows: int) -> float:
    """Return the tokens per second of each request with the best split for so many rows."""
    return 1 / fog.best_step_seconds(fog.group(published.devices), rows)


def _best_of(fog: PaperFog, published: PublishedReplica) -> Performance:
    options = fog.options(fog.group(published.devices))
    if options is None:
        devices = ", ".join(published.devices)
        raise InfeasiblePlanError(f"under this calibration {devices} cannot hold the model")
    return options.prefill if published.role is Role.PREFILL else options.decode


def _as_published(fog: PaperFog, published: PublishedReplica) -> Performance:
    return fog.performance(
        [fog.index(device) for device in published.devices],
        [stage.num_blocks for stage in published.stages],
        [stage.offloads for stage in published.stages],
    )


def _plan(
    fog: PaperFog, workload: PaperWorkload, policy: Policy, members: Sequence[Member]
) -> PaperPlan:
    replicas = tuple(_replica(fog, member) for member in members)
    used = {device for replica in replicas for device in replica.devices}
    return PaperPlan(
        workload=workload,
        policy=policy,
        reading=fog.reading,
        objective_seconds=request_seconds(members, fog.workload),
        rule_slack=rule_slack(fog, members),
        replicas=replicas,
        idle=tuple(cost.id for cost in fog.costs if cost.id not in used),
    )


def _replica(fog: PaperFog, member: Member) -> PaperReplica:
    found = member.performance
    return PaperReplica(
        role=member.role,
        stages=fog.stages(found.devices, found.counts, found.offloads),
        slots=found.slots,
        prefill_tokens_per_second=found.prefill_rate,
    )
