"""When the planner searches for a plan, and what becomes of what it found. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import msgspec.structs

from broker.identity import ModelIdentity, identity
from broker.placement import kv_reserved_tokens
from broker.plan import IdleDevice, Plan
from broker.transport import Publication
from planner.live.demand import RULE, Demand
from planner.live.history import History
from planner.live.knowledge import Knowledge
from planner.live.proposals import Proposal, Question, propose
from planner.live.rollout import Rollout
from planner.live.settings import PlannerSettings
from planner.live.target import fitted_workload, is_for
from planner.live.triggers import changes, drift_text, hop_text
from planner.model import DeviceSpec, InfeasiblePlanError, ModelSpec, Objective, Workload

_RECENT_SECONDS: Final = 600.0
_FEW_PLANS: Final = 3
"""More plans within `_RECENT_SECONDS` say that the next one will not last either."""
_URGENT_SECONDS: Final = 1.0
"""What loading is compared with while nobody serves: the soonest plan comes before the best."""


Start = Callable[[Plan, float], list[Publication]]
"""Begins to carry out a plan for one model, beside those of the others."""


class Search:
    """The way to the next plan for one model, on the devices that are its own.

    Args:
        model: Which one.
        settings: What a person set.
        knowledge: Models and devices.
        rollout: The plans that there are, with a part for each model.
        history: Learns of each decision.
        start: Carries a plan out.
        demand: What requests are like, as far as it is known.

    Attributes:
        infeasible: Why the last search found nothing, in words; None: it found something.
    """

    def __init__(
        self,
        model: ModelIdentity,
        settings: PlannerSettings,
        knowledge: Knowledge,
        rollout: Rollout,
        history: History,
        start: Start,
        demand: Demand,
    ) -> None:
        self.infeasible: str | None = None
        self._model = model
        self._start = start
        self._settings = settings
        self._knowledge = knowledge
        self._rollout = rollout
        self._history = history
        self.demand = demand
        # The devices as they were when the latest plan was made.
        self._planned_with: dict[str, DeviceSpec] = {}
        self._adopted: deque[float] = deque()
        # The plan was the soonest, and a better one may be loaded beside it.
        self._is_hasty = False
        # A plan that nobody has heard of yet.
        self._found: Proposal | None = None
        self._blocked: tuple[object, ...] | None = None

    def take_over(self, plan: Plan) -> None:
        """Go on with a plan that another planner made, with what it was made with."""
        self._planned_with = {}
        self._know_speeds(plan)
        if self.demand.ratio is None and plan.prompt_tokens and plan.answer_tokens:
            self.demand = Demand.planned(
                plan.prompt_tokens, plan.answer_tokens, plan.hop_overhead_seconds
            )
            self._knowledge.hop_overhead_seconds = self.demand.hop_overhead_seconds

    def look(self, now: float) -> None:
        """Take in what gateways measured; devices are the business of `Knowledge`."""
        if self._settings.follow_lengths:
            measured = self._knowledge.measured_lengths()
            self.demand = self.demand.after(measured, self._settings.workload, now)
        self.demand = self.demand.after_hops(self._knowledge.measured_hops(), now)
        self._knowledge.hop_overhead_seconds = self.demand.hop_overhead_seconds

    def seek(
        self,
        model: ModelSpec,
        usable: dict[str, DeviceSpec],
        left_out: dict[str, str],
        now: float,
        share: float = 0.0,
    ) -> bool:
        """Search for a plan if something calls for one; return whether a search was made.

        ``share`` is the model's share of the requests; 0: it is the only model.
        """
        trigger = self._trigger(model, usable, left_out, now)
        if trigger is None:
            self._blocked = self.infeasible = None
            return False
        workload = self._workload(model)
        signature = (
            identity(model),
            workload,
            *((d.id, d.memory_bytes, d.speed, d.link, d.owner) for d in usable.values()),
            *sorted(self._keeping(now)),
        )
        if signature == self._blocked:
            return False
        question = self.question(model, usable, left_out, trigger, now)
        try:
            found = self._propose(question)
            self._found = replace(found, plan=msgspec.structs.replace(found.plan, share=share))
        except InfeasiblePlanError as error:
            self._blocked, self.infeasible = signature, f"no plan: {error}"
            self._history.note(f"{trigger}: {self.infeasible}", self._knowledge.utc_seconds)
        else:
            self._blocked = self.infeasible = None
            self._is_hasty = self._is_down()
        return True

    def question(
        self,
        model: ModelSpec,
        usable: dict[str, DeviceSpec],
        left_out: dict[str, str],
        trigger: str,
        now: float,
    ) -> Question:
        """Return what is to be planned for now."""
        keeping = {n: why for n, why in self._keeping(now).items() if n in usable}
        left_out = {**left_out, **keeping}
        return Question(
            devices=[spec for name, spec in usable.items() if name not in keeping],
            keepable=[usable[name] for name in keeping],
            model=model,
            workload=self._workload(model),
            objective=self._objective(now),
            left_out=[
                IdleDevice(device=device, reason=reason)
                for device, reason in left_out.items()
                if self._knowledge.devices[device].is_ready
            ],
            running=self._part_of(self._rollout.active),
            min_gain=self._settings.min_gain,
            seed=self._settings.seed,
            trigger=trigger,
            version=self._rollout.version + 1,
        )

    def _is_down(self) -> bool:
        """Whether the running plan has no complete replica left, so that requests wait."""
        running = self._part_of(self._rollout.active)
        if running is None:
            return False
        there = {name for name, view in self._knowledge.devices.items() if view.is_there}
        return not any({s.device for s in replica.stages} <= there for replica in running.replicas)

    def _keeping(self, now: float) -> dict[str, str]:
        """Return the devices that keep what they have and get nothing new, and why."""
        cordoned = dict.fromkeys(self._knowledge.cordoned(), "its owner lets it have nothing new")
        return dict(sorted({**self._knowledge.waiting(now), **cordoned}.items()))

    def _propose(self, question: Question) -> Proposal:
        """Propose a plan; rather one on devices that may leave again than none.

        Raises:
            InfeasiblePlanError: The devices hold the model in no way.
        """
        try:
            return propose(question)
        except InfeasiblePlanError:
            cordoned = self._knowledge.cordoned()
            more = [spec for spec in question.keepable if spec.id not in cordoned]
            if not more:
                raise
            return propose(
                replace(
                    question,
                    devices=[*question.devices, *more],
                    keepable=[spec for spec in question.keepable if spec.id in cordoned],
                )
            )

    def name_waiting(
        self, model: ModelSpec, usable: dict[str, DeviceSpec], now: float
    ) -> list[Publication]:
        """Say in the plan which devices must stay for a while before they get stages.

        The plan is the same, so nothing is searched for.
        """
        active = self._part_of(self._rollout.active)
        if active is None or self._rollout.is_changing:
            return []
        in_use = {stage.device for replica in active.replicas for stage in replica.stages}
        if not in_use <= usable.keys():
            return []
        known = {(entry.device, entry.reason) for entry in active.idle}
        waiting = {
            device: reason
            for device, reason in self._knowledge.waiting(now).items()
            if device not in in_use and (device, reason) not in known
        }
        if not waiting:
            return []
        trigger = "; ".join(f"{device} is back: {reason}" for device, reason in waiting.items())
        self._history.note(trigger, self._knowledge.utc_seconds)
        plan = msgspec.structs.replace(
            active,
            trigger=trigger,
            created_at=self._knowledge.utc_seconds,
            idle=[
                *(entry for entry in active.idle if entry.device not in waiting),
                *(IdleDevice(device=device, reason=reason) for device, reason in waiting.items()),
            ],
            reasons={d: why for d, why in active.reasons.items() if d not in waiting},
        )
        return self._start(plan, now)

    def _part_of(self, plan: Plan | None) -> Plan | None:
        parts = plan.parts if plan is not None else []
        return next((part for part in parts if identity(part) == self._model), None)

    def _know_speeds(self, plan: Plan) -> None:
        """Remember the speeds that a plan was made with; other devices are of other plans."""
        known = self._knowledge.planned_speeds
        others = {device: speed for device, speed in known.items() if device not in plan.reasons}
        self._knowledge.planned_speeds = {**others, **plan.speeds}

    def _workload(self, model: ModelSpec) -> Workload:
        return fitted_workload(self.demand.workload(self._settings.workload), model)

    def _objective(self, now: float) -> Objective:
        """Return the objective; where plans follow each other, none repays much loading."""
        objective = self._settings.objective
        if objective.horizon_seconds and self._is_down():
            return replace(objective, horizon_seconds=_URGENT_SECONDS)
        while self._adopted and now - self._adopted[0] > _RECENT_SECONDS:
            self._adopted.popleft()
        if len(self._adopted) <= _FEW_PLANS or not objective.horizon_seconds:
            return objective
        lasts = _RECENT_SECONDS / len(self._adopted)
        return replace(objective, horizon_seconds=min(objective.horizon_seconds, lasts))

    def start_found(
        self, model: ModelSpec, usable: dict[str, DeviceSpec], now: float
    ) -> list[Publication]:
        """Carry out what the last search found, unless the fog changed meanwhile."""
        found = self._found
        if found is None:
            return []
        plan = found.plan
        is_next = plan.version == self._rollout.version + 1
        are_here = all(s.device in usable for r in plan.replicas for s in r.stages)
        if not (is_next and is_for(plan, model) and are_here) or self._too_small(
            plan, model, usable
        ):
            self.give_up_found("the fog changed while it was searched for")
            return []
        self._found = None
        at = self._knowledge.utc_seconds
        if found.record.outcome == "adopted":
            self._adopted.append(now)
        self._planned_with = dict(usable)
        self._know_speeds(plan)
        published = self._start(msgspec.structs.replace(plan, created_at=at), now)
        # Other plans may come first; what was decided is the last of them.
        version = self._rollout.final_version
        record = msgspec.structs.replace(found.record, at=at, version=version)
        self._history.add(f"plan {version}: {found.text}", record)
        return published

    def give_up_found(self, why: str) -> None:
        """What was found is not carried out."""
        if self._found is not None:
            self._history.note(
                # Its number goes to the next plan that is found.
                f"the draft of plan {self._found.plan.version} is dropped: {why}",
                self._knowledge.utc_seconds,
            )
            self._found = None

    def _trigger(
        self, model: ModelSpec, usable: dict[str, DeviceSpec], left_out: dict[str, str], now: float
    ) -> str | None:
        """Return what calls for a plan now, in words."""
        current = self._part_of(self._rollout.current)
        quiet = now - self._knowledge.changed_seconds >= self._settings.settle_seconds
        if current is None:
            if self._rollout.is_changing:
                return None  # Another model's plan comes first.
            num_measured = self._knowledge.num_measured(model)
            if not usable or self._waits_for_devices(model, num_measured, now):
                return None
            if not quiet and not 0 < self._settings.expect_devices <= num_measured:
                return None
            return f"{len(usable)} devices for {model.name}"
        devices = {stage.device for replica in current.replicas for stage in replica.stages}
        gone = sorted(devices - set(usable))
        if gone:
            return "; ".join(f"{d} left ({left_out.get(d) or self._absence(d)})" for d in gone)
        if self._rollout.is_changing:
            return None
        small = self._too_small(current, model, usable)
        if small:
            return f"{', '.join(small)} cannot hold its stage any more"
        joined = sorted(set(usable) - set(current.reasons) - self._keeping(now).keys())
        if joined and quiet:
            return f"{', '.join(joined)} joined"
        if self._is_hasty and quiet and not self._is_down():
            return "nobody served when this plan was made"
        for name, spec in usable.items():
            speed = self._knowledge.planned_speeds.get(name, 1.0)
            self._planned_with.setdefault(name, replace(spec, speed=speed))
        changed = changes(self._planned_with, usable, self._settings.speed_threshold)
        workload = self._workload(model).fitted_to(model.context_limit)
        if drift := drift_text(current, workload, RULE.threshold):
            changed.append(drift)
        if hops := hop_text(current, self.demand.hop_overhead_seconds):
            changed.append(hops)
        return "; ".join(changed) or None

    def _absence(self, device: str) -> str:
        return "it is for another model" if device in self._knowledge.devices else "it is gone"

    def _too_small(self, plan: Plan, model: ModelSpec, usable: dict[str, DeviceSpec]) -> list[str]:
        tokens = kv_reserved_tokens(plan.context_tokens)
        return sorted(
            stage.device
            for replica in plan.replicas
            for stage in replica.stages
            if usable[stage.device].memory_bytes
            < model.stage_bytes(stage.layers.start, stage.layers.end, tokens)
        )

    def _waits_for_devices(self, model: ModelSpec, num_measured: int, now: float) -> bool:
        if now - self._knowledge.changed_seconds >= self._settings.wait_seconds:
            return False
        is_early = num_measured < self._settings.expect_devices
        return is_early or bool(self._knowledge.measuring(model))
