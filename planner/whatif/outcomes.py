"""A fog under a workload, as it is and while devices are lost. Pure.

Plans are those of production (`planner.planning`), and so are late binding, growing KV and the
links between devices in the simulation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from broker.plan import Plan, Role
from planner.model import DeviceSpec, InfeasiblePlanError, ModelSpec, Objective, Workload
from planner.moves import Holdings
from planner.planning import plan_outcome
from planner.simulation import (
    DeviceLoss,
    KvReservation,
    PlanChange,
    Record,
    Result,
    Scenario,
    SimReplica,
    SimRequest,
    Summary,
    simulate,
)
from planner.simulation.replicas import kv_bytes_per_token, network_of, replicas_from_plan
from planner.simulation.routing import LEAST_ADDED

NOTICE_SECONDS: Final = 2.0
"""From a device's end to its requests being queued again: a broken connection makes the broker
publish the last will at once, a silent one only after the keep-alive time."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is planned for, whatever the devices.

    Attributes:
        seed: Of the genetic algorithm.
    """

    model: ModelSpec
    workload: Workload
    objective: Objective
    seed: int = 0

    def plan(self, devices: Sequence[DeviceSpec], running: Plan | None = None) -> Plan:
        """Return the plan of production, which keeps what is loaded if that is nearly as good.

        Raises:
            InfeasiblePlanError: The model does not fit; says what is missing.
        """
        problem = self.model, self.workload, self.objective
        return plan_outcome(devices, *problem, self.seed, running).plan


@dataclass(frozen=True, slots=True)
class NextPlan:
    """A plan that becomes active while requests come.

    Attributes:
        active_from_seconds: When its devices have fetched the layers that they lacked.
        load_seconds: How long they fetch.
        slowest: The device that fetches longest; None when nothing is fetched.
        missing: The phases for which no replica of the plan before is left until then.
    """

    active_from_seconds: float
    plan: Plan
    load_seconds: float
    slowest: str | None
    missing: tuple[Role, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """A fog under a workload.

    Attributes:
        busy: Device to the share of the time in which it computes.
        within_targets: Share of all requests that finish and meet the objective's targets;
            None without targets.
        later: Plans that became active while requests came, in the order of time.
        notes: What a reader should know.
    """

    plan: Plan
    summary: Summary
    busy: Mapping[str, float]
    within_targets: float | None = None
    later: tuple[NextPlan, ...] = ()
    notes: tuple[str, ...] = ()


def what_if(
    problem: Problem,
    devices: Sequence[DeviceSpec],
    requests: Sequence[SimRequest],
    losses: Sequence[tuple[str, float]] = (),
    plan: Plan | None = None,
) -> Outcome:
    """Return what becomes of requests.

    After each loss a new plan is made, and becomes active when its devices have fetched the
    layers that they lack.

    Args:
        problem: Model and workload.
        devices: Of the fog.
        requests: In the order of arrival.
        losses: Device and when it stops, in seconds, in the order of time.
        plan: With which it begins; None: the planner's.

    Raises:
        InfeasiblePlanError: The model does not fit, before any loss.
    """
    plan = plan or problem.plan(devices)
    faults: list[DeviceLoss | PlanChange] = []
    later: list[NextPlan] = []
    notes: list[str] = []
    left, running = list(devices), plan
    for index, (lost, at_seconds) in enumerate(losses):
        left = [device for device in left if device.id != lost]
        faults.append(DeviceLoss(at_seconds, lost, NOTICE_SECONDS))
        try:
            coming = problem.plan(left, running)
        except InfeasiblePlanError as error:
            notes.append(f"without {lost} there is no plan: {error}")
            continue
        seconds, slowest = _loading(problem, running, coming, left)
        ready = at_seconds + NOTICE_SECONDS + seconds
        following = losses[index + 1 : index + 2]
        if following and following[0][1] <= ready:
            notes.append(f"{following[0][0]} is lost before the plan without {lost} is ready")
            continue
        faults.append(PlanChange(ready, _replicas(problem, left, coming)))
        later.append(NextPlan(ready, coming, seconds, slowest, _missing(running, left)))
        running = coming
    last = requests[-1].arrival_seconds
    notes += [
        f"{lost} is lost after the last request arrived ({last:.0f} s)"
        for lost, at_seconds in losses
        if at_seconds > last
    ]
    result = _simulated(problem, devices, plan, requests, tuple(faults))
    return Outcome(
        plan,
        result.summary(),
        _busy(result),
        _within_targets(problem.objective, result.records),
        tuple(later),
        tuple(notes),
    )


def alone(
    problem: Problem, devices: Sequence[DeviceSpec], plan: Plan, requests: Sequence[SimRequest]
) -> Outcome | None:
    """Return what the plan's best single device would do with the same requests by itself.

    None when no device holds the model, or the plan is that device.
    """
    single = plan.best_single_device
    used = {stage.device for replica in plan.replicas for stage in replica.stages}
    if single is None or used == {single.device}:
        return None
    return what_if(problem, [d for d in devices if d.id == single.device], requests)


def _within_targets(objective: Objective, records: Sequence[Record]) -> float | None:
    if not objective.has_targets:
        return None
    ttft = inf if objective.ttft_seconds is None else objective.ttft_seconds
    tpot = inf if objective.tpot_seconds is None else objective.tpot_seconds
    good = sum(
        # An answer of one token has no TPOT, which is NaN and over no target.
        record.is_finished and record.ttft_seconds <= ttft and not record.tpot_seconds > tpot
        for record in records
    )
    return good / len(records)


def _busy(result: Result) -> dict[str, float]:
    """Return each device's share of the time, over the replicas that it was part of."""
    busy: dict[str, float] = {}
    for stage in result.stages:
        busy[stage.device] = busy.get(stage.device, 0.0) + stage.utilisation
    return busy


def _loading(
    problem: Problem, running: Plan, coming: Plan, devices: Sequence[DeviceSpec]
) -> tuple[float, str | None]:
    """Return how long devices fetch weights that they do not hold, and which one longest.

    Each fetches over its own link.
    """
    links = {device.id: device.link.bytes_per_second for device in devices}
    lacking = Holdings.of(running, problem.model).lacking(coming)
    seconds = {device: num_bytes / links[device] for device, num_bytes in lacking.items()}
    slowest = max(seconds, key=lambda device: seconds[device])
    return (seconds[slowest], slowest) if seconds[slowest] > 0 else (0.0, None)


def _missing(running: Plan, left: Sequence[DeviceSpec]) -> tuple[Role, ...]:
    """Return the phases that no replica has whose devices are all left."""
    names = {device.id for device in left}
    roles = {
        replica.role
        for replica in running.replicas
        if names.issuperset(stage.device for stage in replica.stages)
    }
    return tuple([phase for phase in (Role.PREFILL, Role.DECODE) if not roles & {phase, Role.BOTH}])


def _replicas(
    problem: Problem, devices: Sequence[DeviceSpec], plan: Plan
) -> tuple[SimReplica, ...]:
    return replicas_from_plan(plan, devices, problem.model, problem.workload)


def _simulated(
    problem: Problem,
    devices: Sequence[DeviceSpec],
    plan: Plan,
    requests: Sequence[SimRequest],
    faults: tuple[DeviceLoss | PlanChange, ...],
) -> Result:
    scenario = Scenario(
        replicas=_replicas(problem, devices, plan),
        requests=requests,
        routing=LEAST_ADDED,
        network=network_of(devices),
        kv_bytes_per_token=kv_bytes_per_token(problem.model),
        num_layers=problem.model.num_layers,
        reservation=KvReservation.GROWING,
        faults=faults,
        expected_answer_tokens=float(problem.workload.answer_tokens),
    )
    return simulate(scenario)
