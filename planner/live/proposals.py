"""From devices to the next plan, and the record of why it is that one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import msgspec.structs

from broker.plan import Considered, IdleDevice, Plan, PlanDecision
from planner.live.triggers import Decision, decide
from planner.model import DeviceSpec, InfeasiblePlanError, ModelSpec, Objective, Workload
from planner.planning import Outcome, plan_outcome, reassess


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is planned for.

    Attributes:
        devices: That may be used.
        keepable: Others that may go on with the stages that they have, and get no new ones.
        left_out: The devices that are there and may not be used, with the reason.
        running: The plan that serves; None when there is none for this model.
        min_gain: Share of requests per second that repays a move of weights.
        seed: Of the genetic algorithm.
        trigger: What changed, in words.
        version: Of the plan to be.
    """

    devices: Sequence[DeviceSpec]
    model: ModelSpec
    workload: Workload
    objective: Objective
    keepable: Sequence[DeviceSpec] = ()
    left_out: Sequence[IdleDevice] = ()
    running: Plan | None = None
    min_gain: float = 0.0
    seed: int = 0
    trigger: str
    version: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """The next plan.

    Attributes:
        record: What was compared, and why this plan; without time and version.
        text: The same in one line, for the log, without the version.
    """

    plan: Plan
    record: PlanDecision
    text: str


def propose(question: Question) -> Proposal:
    """Return the best plan when it repays the move, else the running one as it is now.

    Raises:
        InfeasiblePlanError: The devices hold the model in no way.
    """
    devices, model, workload = question.devices, question.model, question.workload
    objective, running = question.objective, question.running
    dark = sorted(device.id for device in devices if device.idle_watts is None)
    note = ""
    if objective.energy_weight and dark:
        objective = replace(objective, energy_weight=0.0)
        note = f"; energy does not count, as nobody says the power of {', '.join(dark)}"
    kept = None
    if running is not None:
        kept = reassess(running, [*devices, *question.keepable], model, workload, objective)
    try:
        best = plan_outcome(devices, model, workload, objective, question.seed, running)
    except InfeasiblePlanError:
        if running is None or kept is None or len(kept.plan.replicas) < len(running.replicas):
            raise
        best = kept
        reason = "there is no plan without what devices may only keep"
        text = "; ".join(filter(None, [f"kept: {reason}", kept.plan.optimality]))
        plan = msgspec.structs.replace(kept.plan, optimality=text)
        decision = Decision(replace(kept, plan=plan), True, reason)
    else:
        decision = decide(running, kept, best, question.min_gain, _lost(question))
    fitted = workload.fitted_to(model.context_limit)
    plan = msgspec.structs.replace(
        decision.outcome.plan,
        version=question.version,
        trigger=f"{question.trigger}; {decision.reason}",
        idle=[*decision.outcome.plan.idle, *_left_out(decision.outcome.plan, question.left_out)],
        speeds={
            device.id: device.speed
            for device in (*devices, *question.keepable)
            if device.speed != 1.0
        },
        prompt_tokens=fitted.prompt_tokens,
        answer_tokens=fitted.answer_tokens,
        hop_overhead_seconds=max((d.hop_overhead_seconds for d in devices), default=0.0),
    )
    as_it_is = decision.outcome if decision.is_kept else kept
    record = PlanDecision(
        at=0.0,
        trigger=question.trigger,
        outcome="kept" if _is_same(plan, running) else "adopted",
        reason=decision.reason,
        considered=[
            *([] if as_it_is is None else [_considered("running", as_it_is)]),
            _considered("best", best),
        ],
    )
    what = "keeps the replicas" if decision.is_kept else "plans"
    text = (
        f"{question.trigger}; {what}: {decision.reason}; "
        f"{len(plan.replicas)} replicas on {_num_devices(plan)} devices, "
        f"{plan.predicted.requests_per_second or 0.0:.3g} requests per second; "
        f"{plan.optimality}{note}"
    )
    return Proposal(plan, record, text)


def _lost(question: Question) -> dict[str, str]:
    """Return the devices of the running plan that it has no more, and why."""
    replicas = question.running.replicas if question.running is not None else ()
    in_use = {stage.device for replica in replicas for stage in replica.stages}
    there = {device.id for device in (*question.devices, *question.keepable)}
    reasons = {entry.device: entry.reason for entry in question.left_out}
    return {device: reasons.get(device, "it is gone") for device in sorted(in_use - there)}


def _left_out(plan: Plan, devices: Iterable[IdleDevice]) -> list[IdleDevice]:
    """Return those that the plan does not name: what a device keeps it is not left out of."""
    return [entry for entry in devices if entry.device not in plan.reasons]


def _is_same(plan: Plan, running: Plan | None) -> bool:
    """Whether nobody has to do anything else than before."""
    if running is None:
        return False
    return {(r.id, r.role) for r in plan.replicas} == {(r.id, r.role) for r in running.replicas}


def _considered(name: str, outcome: Outcome) -> Considered:
    plan = outcome.plan
    return Considered(
        name=name,
        num_replicas=len(plan.replicas),
        num_devices=_num_devices(plan),
        requests_per_second=plan.predicted.requests_per_second or 0.0,
        objective_seconds=outcome.score.objective_seconds,
        optimality=plan.optimality,
    )


def _num_devices(plan: Plan) -> int:
    return sum(len(replica.stages) for replica in plan.replicas)
