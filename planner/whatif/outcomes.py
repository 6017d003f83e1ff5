"""A fog under a workload, as it is and while devices are lost. Pure.

Plans are those of production (`planner.planning`), and so are late binding, growing KV and the
links between devices in the simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from broker.plan import Plan
from planner.model import DeviceSpec, InfeasiblePlanError, ModelSpec, Objective, Workload
from planner.planning import plan as make_plan
from planner.simulation import (
    DeviceLoss,
    KvReservation,
    PlanChange,
    Scenario,
    SimReplica,
    SimRequest,
    Summary,
    simulate,
)
from planner.simulation.replicas import kv_bytes_per_token, network_of, replicas_from_plan
from planner.simulation.routing import LATE_BINDING

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

    def plan(self, devices: Sequence[DeviceSpec]) -> Plan:
        """Return the plan of production.

        Raises:
            InfeasiblePlanError: The model does not fit; says what is missing.
        """
        return make_plan(devices, self.model, self.workload, self.objective, self.seed)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A fog under a workload.

    Attributes:
        later: Plans that became active while requests came, with their time.
        notes: What a reader should know.
    """

    plan: Plan
    summary: Summary
    later: tuple[tuple[float, Plan], ...] = ()
    notes: tuple[str, ...] = ()


def what_if(
    problem: Problem,
    devices: Sequence[DeviceSpec],
    requests: Sequence[SimRequest],
    losses: Sequence[tuple[str, float]] = (),
) -> Outcome:
    """Return what becomes of requests.

    After each loss a new plan is made, and becomes active when its devices have fetched the
    layers that they lack.

    Args:
        problem: Model and workload.
        devices: Of the fog.
        requests: In the order of arrival.
        losses: Device and when it stops, in seconds, in the order of time.

    Raises:
        InfeasiblePlanError: The model does not fit, before any loss.
    """
    plan = problem.plan(devices)
    faults: list[DeviceLoss | PlanChange] = []
    later: list[tuple[float, Plan]] = []
    notes: list[str] = []
    left, running = list(devices), plan
    for index, (lost, at_seconds) in enumerate(losses):
        left = [device for device in left if device.id != lost]
        faults.append(DeviceLoss(at_seconds, lost, NOTICE_SECONDS))
        try:
            coming = problem.plan(left)
        except InfeasiblePlanError as error:
            notes.append(f"without {lost} there is no plan: {error}")
            continue
        ready = at_seconds + NOTICE_SECONDS + _load_seconds(problem, running, coming, left)
        following = losses[index + 1 : index + 2]
        if following and following[0][1] <= ready:
            notes.append(f"{following[0][0]} is lost before the plan without {lost} is ready")
            continue
        faults.append(PlanChange(ready, _replicas(problem, left, coming)))
        later.append((ready, coming))
        running = coming
    last = requests[-1].arrival_seconds
    notes += [
        f"{lost} is lost after the last request arrived ({last:.0f} s)"
        for lost, at_seconds in losses
        if at_seconds > last
    ]
    summary = _simulated(problem, devices, plan, requests, tuple(faults))
    return Outcome(plan, summary, tuple(later), tuple(notes))


def _load_seconds(
    problem: Problem, running: Plan, coming: Plan, devices: Sequence[DeviceSpec]
) -> float:
    """Return how long devices fetch layers that they do not hold, each over its own link."""
    held = _layers(running)
    links = {device.id: device.link.bytes_per_second for device in devices}
    sizes = problem.model.block_bytes
    seconds = (
        sum(sizes[layer] for layer in layers - held.get(device, set())) / links[device]
        for device, layers in _layers(coming).items()
    )
    return max(seconds, default=0.0)


def _layers(plan: Plan) -> dict[str, set[int]]:
    return {
        stage.device: set(range(stage.layers.start, stage.layers.end))
        for replica in plan.replicas
        for stage in replica.stages
    }


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
) -> Summary:
    scenario = Scenario(
        replicas=_replicas(problem, devices, plan),
        requests=requests,
        routing=LATE_BINDING,
        network=network_of(devices),
        kv_bytes_per_token=kv_bytes_per_token(problem.model),
        num_layers=problem.model.num_layers,
        reservation=KvReservation.GROWING,
        faults=faults,
        expected_answer_tokens=float(problem.workload.answer_tokens),
    )
    return simulate(scenario).summary()
