"""From devices, model, workload and objective to a plan. Pure: equal arguments, equal plan.

The genetic algorithm plans at every size; where exact enumeration is cheap it runs
afterwards and certifies or corrects it. A plan says how good it is: certified optimal, or
how far it is at most from what no plan exceeds (`planner.certificate`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from broker.plan import Plan, Role
from planner.assembly import assemble
from planner.certificate import certificate
from planner.explain import infeasible
from planner.groupings.oracle import enumerate_groupings
from planner.groupings.search import Groupings, Solution, best_single, rival_of
from planner.model import DeviceSpec, ModelSpec, Objective, Roles, Workload
from planner.owner import roles_of
from planner.performance import Options
from planner.replicas import Fog
from planner.roles import WORST, Score, choose_roles

if TYPE_CHECKING:
    from planner.groupings.large_fogs import Found

# With `Roles.AUTO`, separate roles may cost this factor in throughput.
_AUTO_FACTOR: Final = 2.0

_Search = Callable[[Roles], tuple[Solution, str]]
"""Which roles may be used to the best solution, and in words how good it is."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """A plan, and what is compared when it competes with another."""

    plan: Plan
    score: Score


def plan(
    devices: Sequence[DeviceSpec],
    model: ModelSpec,
    workload: Workload,
    objective: Objective | None = None,
    seed: int = 0,
) -> Plan:
    """Return the best plan found for these devices; version 0, state ``preparing``.

    Equal arguments give equal plans, whatever the order of the devices. Times are seconds,
    sizes bytes, rates per second, lengths tokens.

    Args:
        devices: As measured, or by data sheet (`planner.catalogue`).
        model: In numbers.
        workload: The requests to plan for, and the longest of them.
        objective: What makes one plan better than another; None: most requests per second,
            prefill and decode on different replicas where two are possible.
        seed: Of the genetic algorithm.

    Raises:
        InfeasiblePlanError: No group of devices holds the model; says what is missing.
        ValueError: Two devices have one id, a device lacks times of a kind of block, or energy
            counts and a device's power is unknown; names the devices.
    """
    return plan_outcome(devices, model, workload, objective, seed).plan


def exact(
    devices: Sequence[DeviceSpec],
    model: ModelSpec,
    workload: Workload,
    objective: Objective | None = None,
    seed: int = 0,
) -> Plan:
    """Return the best of all groupings by enumeration alone, however many (and however long).

    Each group has the splits that compute fastest. Another may carry more KV caches over slow
    links, so the plan says whether it is optimal among all splits, or how far from that at most.
    Arguments and errors are those of `plan`; ``seed`` changes nothing. There are Bell(n + 1)
    groupings of n devices: 4140 for seven, 21147 for eight, 678570 for ten.
    """
    fog = Fog(devices, model, workload, objective or Objective())
    return _planned(fog, lambda roles: _enumerated(fog, roles)).plan


def bound(
    devices: Sequence[DeviceSpec],
    model: ModelSpec,
    workload: Workload,
    objective: Objective | None = None,
    seed: int = 0,
) -> float:
    """Return requests per second that no plan of these devices exceeds.

    A linear program over groups of devices: exact over all of them up to the objective's
    ``exact_devices``, bounded from above beyond (`planner.bounds.group_bound` says why it holds).
    0 where no group holds the model. Arguments are those of `plan`, as are errors about
    devices; ``seed`` changes nothing.
    """
    # Like DEAP, HiGHS is imported by those who need it.
    from planner.bounds.group_bound import group_bound

    # Beyond a target for tokens a replica has more slots, and serves more that do not count.
    asked = replace(objective or Objective(), tpot_seconds=None)
    return group_bound(Fog(devices, model, workload, asked))


def plan_outcome(
    devices: Sequence[DeviceSpec],
    model: ModelSpec,
    workload: Workload,
    objective: Objective | None = None,
    seed: int = 0,
    running: Plan | None = None,
) -> Outcome:
    """As `plan`, with its score; the search begins at the ``running`` plan.

    What the running plan has loaded costs nothing to keep, so of two plans that are nearly
    equal the one nearer to it wins (`Objective.horizon_seconds`).
    """
    fog = Fog(devices, model, workload, objective or Objective(), running)
    return _planned(fog, _Searches(fog, seed, running))


def reassess(
    running: Plan,
    devices: Sequence[DeviceSpec],
    model: ModelSpec,
    workload: Workload,
    objective: Objective | None = None,
) -> Outcome | None:
    """Return the running plan's stages with the predictions and roles of now.

    Replicas that lost a device, or the memory for the model, or share a device with one before
    them, are left out. Roles are chosen anew, since that moves no weights. How good it is among
    the plans of now is not asked: it says nothing of that. None when what is left cannot serve.
    """
    fog = Fog(devices, model, workload, objective or Objective(), running)
    index = {cost.id: device for device, cost in enumerate(fog.costs)}
    options = []
    used: set[str] = set()
    for replica in running.replicas:
        names = {stage.device for stage in replica.stages}
        # On the way between two plans a device may hold stages of both (`planner.live.rolling`).
        if not names <= index.keys() or names & used:
            continue
        used |= names
        found = fog.performance(
            [index[stage.device] for stage in replica.stages],
            [len(stage.layers) for stage in replica.stages],
        )
        roles = roles_of(fog.costs[device].owner for device in found.devices)
        if replica.num_layers == model.num_layers and roles and fog.can_serve(found):
            options.append(Options(found, found, found, roles))

    rival = rival_of(fog)

    def choose(roles: Roles) -> tuple[Solution, str]:
        found = choose_roles(options, fog.workload, roles, terms=fog.terms, rival=rival)
        return Solution(*found), ""

    return _planned(fog, choose) if options else None


def _planned(fog: Fog, search: _Search) -> Outcome:
    """Search as the objective says about roles, and not behind the best device.

    Standing beside the best device alone (`planner.rival`) goes before keeping roles separate:
    when every plan with separate roles is behind it, roles may be mixed under
    `Roles.SEPARATE` too. The last resort is that device, doing both.
    """
    roles = fog.objective.roles
    wanted = Roles.SEPARATE if roles is Roles.AUTO else roles
    solution, optimality = search(wanted)
    if solution.score >= WORST:
        raise infeasible(fog)
    if wanted is Roles.SEPARATE:
        found = solution.score
        rival = rival_of(fog)
        is_forced = rival is not None and bool(found.is_behind or found.is_mixed)
        if is_forced or roles is Roles.AUTO:
            mixed, mixed_optimality = search(Roles.MIXED)
            factor = 1.0 if is_forced else _AUTO_FACTOR
            # Where roles may be mixed anyway, devices are idle for what they would do so.
            needed = found.objective_seconds * (1 + 1e-9 if is_forced else 1 - 1e-9)
            is_worse = mixed.score.objective_seconds * factor >= needed
            if (mixed.score.is_behind, is_worse) < (found.is_behind, True):
                solution, optimality = mixed, mixed_optimality
                if any(m.role is Role.BOTH for m in mixed.members) and len(mixed.members) > 1:
                    why = (
                        f"separate ones would be behind {rival.device} alone"
                        if rival is not None and is_forced
                        else "separate ones would serve "
                        f"{1 / found.request_seconds:.3g} requests per second"
                    )
                    optimality = "; ".join(filter(None, [optimality, f"roles are mixed: {why}"]))
    return Outcome(assemble(fog, solution, optimality), solution.score)


class _Searches:
    """The genetic algorithm for one fog; a search with other roles goes on from the last."""

    def __init__(self, fog: Fog, seed: int, running: Plan | None) -> None:
        self._fog = fog
        self._seed = seed
        self._start = [] if running is None else [_groups_of(fog, running)]
        # What may be left when all else is behind it.
        single = best_single(fog)
        if single is not None:
            self._start.append([list(single.performance.devices)])
        self._before: Found | None = None

    def __call__(self, roles: Roles) -> tuple[Solution, str]:
        """Return the best solution with such roles, and how good it is in words."""
        # DEAP and HiGHS are imported here, so that `import planner` costs nothing that a
        # reader of plans does not need.
        fog, seed, start = self._fog, self._seed, self._start
        if fog.num_devices > fog.objective.exact_devices:
            from planner.groupings.large_fogs import gap_in_words, search

            found = self._before = search(fog, roles, seed, start, self._before)
            return found.solution, gap_in_words(fog, found) if found.solution.members else ""
        from planner.groupings.evolve import evolve

        groupings = Groupings(fog, roles)
        evolved = evolve(fog, roles, seed, groupings, start)
        best = enumerate_groupings(fog, roles, groupings)
        how = f"the best of {best.num_compared} groupings"
        if best.score < evolved.score:
            how += ", better than what the genetic algorithm found"
        return best, certificate(fog, groupings, best, how)


def _enumerated(fog: Fog, roles: Roles) -> tuple[Solution, str]:
    groupings = Groupings(fog, roles)
    found = enumerate_groupings(fog, roles, groupings)
    how = f"the best of {found.num_compared} groupings"
    return found, certificate(fog, groupings, found, how)


def _groups_of(fog: Fog, running: Plan) -> list[list[int]]:
    left = {cost.id: device for device, cost in enumerate(fog.costs)}
    groups = [
        [left.pop(stage.device) for stage in replica.stages if stage.device in left]
        for replica in running.replicas
    ]
    return [group for group in groups if group]
