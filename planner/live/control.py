"""The planner's decisions as a state machine: events in, publications out. No I/O, no clock.

There is at most one active plan, which serves, and one coming plan, which devices load
beside it. A coming plan becomes active when every one of its devices has its stages in
memory; some time later devices give up the stages of the plan before. Only the planner with
the lease publishes; another one listens and knows everything when it takes over.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Final

import msgspec.structs

from broker.placement import kv_reserved_tokens
from broker.plan import IdleDevice, LoadState, Plan, PlanDecision
from broker.transport import Publication
from planner.live.authority import Authority
from planner.live.demand import RULE, Demand
from planner.live.events import (
    AssignmentSeen,
    BusDown,
    BusUp,
    Event,
    HistorySeen,
    LoadedSeen,
    PlannerSeen,
    PlanSeen,
    StoreSeen,
)
from planner.live.history import History
from planner.live.knowledge import Failure, Knowledge
from planner.live.proposals import Proposal, Question, propose
from planner.live.rollout import Rollout
from planner.live.settings import PlannerSettings
from planner.live.target import NoModelError, chosen_model, fitted_workload
from planner.live.triggers import changes, drift_text, hop_text
from planner.model import DeviceSpec, InfeasiblePlanError, ModelSpec, Objective, Workload

_RECENT_SECONDS: Final = 600.0
_FEW_PLANS: Final = 3
"""More plans within `_RECENT_SECONDS` say that the next one will not last either."""


class Control:
    """One planner.

    Args:
        settings: What a person set.
        session: Grows with every start of a planner.

    Attributes:
        history: Plans started and problems met.
        wants_look: A search has ended, which may have taken longer than the lease lasts:
            nothing is published before the next look into the store.
    """

    def __init__(self, settings: PlannerSettings, session: int) -> None:
        self.settings = settings
        self.session = session
        self.knowledge = Knowledge(settings.limits)
        self.rollout = Rollout(settings.site, settings.drain_seconds)
        self.authority = Authority(settings.site, session, settings.lease_seconds)
        self.history = History(settings.site)
        self.demand = Demand()
        self.wants_look = False
        self._up_seconds: float | None = None
        self._heard_store = False
        self._must_republish = False
        self._utc_seconds = 0.0
        # The devices as they were when the latest plan was made.
        self._planned_with: dict[str, DeviceSpec] = {}
        self._adopted: deque[float] = deque()
        # A plan that nobody has heard of yet.
        self._found: Proposal | None = None
        self._blocked: tuple[object, ...] | None = None
        self._infeasible: str | None = None
        self._problem_told: str | None = None

    # --- events ---------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Publication]:
        """Take in one event; what follows from it is published by the next `tick`."""
        if isinstance(event, LoadedSeen) and self._is_repeated(event):
            return []
        self.knowledge.hear(event, now)
        match event:
            case BusUp():
                if self._up_seconds is None:
                    self._up_seconds = now
                self._must_republish = True
            case BusDown():
                # What is published now would wait, and be old when it arrives.
                self._up_seconds = None
                self._must_republish = True
            case PlanSeen(None) | AssignmentSeen(assignment=None):
                # Cleared by hand: a node or gateway that starts now would know nothing.
                self._must_republish = True
            case PlanSeen(plan) if plan is not None:
                if self.rollout.hear(plan):
                    self._take_over(plan)
            case HistorySeen(history):
                self.history.hear(history)
            case PlannerSeen(status):
                self.authority.hear_planner(status, now)
            case StoreSeen():
                self._heard_store = True
                self.wants_look = False
                self.authority.hear_store(event.lease, now)
                self.rollout.version = max(self.rollout.version, event.last_version)
                self._look(now)
            case LoadedSeen(device, loaded) if loaded is not None:
                if loaded.state is LoadState.FAILED:
                    self._note_failure(device, loaded.error or "it gives no reason", now)
                elif loaded.state is LoadState.LOADED and loaded.stages:
                    self.knowledge.view(device).failure = None
            case _:
                pass
        return []

    def _is_repeated(self, event: LoadedSeen) -> bool:
        view = self.knowledge.devices.get(event.device)
        return view is not None and view.loaded is not None and view.loaded == event.loaded

    def _note_failure(self, device: str, error: str, now: float) -> None:
        wait = self.knowledge.note_failure(device, error, now, self.settings.retry_seconds)
        if wait is not None:
            self._note(f"{device} failed to load: {error}; left out for {wait:g} s")

    def _take_over(self, plan: Plan) -> None:
        """Go on with a plan that another planner made, with what it was made with."""
        self._planned_with = {}
        self.knowledge.planned_speeds = dict(plan.speeds)
        if self.demand.ratio is None and plan.prompt_tokens and plan.answer_tokens:
            self.demand = Demand.planned(
                plan.prompt_tokens, plan.answer_tokens, plan.hop_overhead_seconds
            )
            self.knowledge.hop_overhead_seconds = self.demand.hop_overhead_seconds

    def _look(self, now: float) -> None:
        """Take in what gateways measured; devices are the business of `Knowledge`."""
        if self.settings.follow_lengths:
            measured = self.knowledge.measured_lengths()
            self.demand = self.demand.after(measured, self.settings.workload, now)
        self.demand = self.demand.after_hops(self.knowledge.measured_hops(), now)
        self.knowledge.hop_overhead_seconds = self.demand.hop_overhead_seconds

    def _note(self, text: str) -> None:
        """Remember what became of a plan, or why there is none."""
        record = PlanDecision(at=self._utc_seconds, trigger="", outcome="none", reason=text)
        self.history.add(text, record)

    # --- time -----------------------------------------------------------------------------

    def tick(self, now: float, utc_seconds: float = 0.0) -> list[Publication]:
        """Decide what is due; nothing before all retained state had time to arrive.

        A tick that searches for a plan publishes nothing. The next one does, when the look
        that `wants_look` asks for has renewed the lease.
        """
        self._utc_seconds = self.knowledge.utc_seconds = utc_seconds
        if self._up_seconds is None or not self._heard_store or self.wants_look:
            return []
        if now - self._up_seconds < self.settings.settle_seconds:
            return []
        if not self.authority.leads(now):
            self.authority.forget_announced()
            self._give_up_found("another planner has the lease")
            return []
        publications: list[Publication] = []
        if self._must_republish:
            self._must_republish = False
            self.authority.forget_announced()
            self.history.republish()
            publications += self.rollout.republished(self.knowledge)
        try:
            model = chosen_model(self.knowledge.models, self.settings.model)
        except NoModelError as error:
            problem: str | None = str(error)
        else:
            usable, left_out = self.knowledge.usable(model, now)
            publications += self._give_up(model, usable, now)
            publications += self.rollout.step(self.knowledge, model, now)
            publications += self._start_found(model, usable, now)
            if not publications and self._search(model, usable, left_out, now):
                self.wants_look = True
                return []
            problem = self._problem(model, now)
        # Numbers of a progress change often; the log is told of each kind of problem once.
        kind = problem.partition(":")[0] if problem is not None else None
        if problem is not None and kind != self._problem_told and self._infeasible is None:
            self.history.tell(problem)
        self._problem_told = kind
        return [
            *publications,
            *self.history.announce(),
            *self.authority.announce(problem, now),
        ]

    # --- planning -------------------------------------------------------------------------

    def _search(
        self, model: ModelSpec, usable: dict[str, DeviceSpec], left_out: dict[str, str], now: float
    ) -> bool:
        """Search for a plan if something calls for one; return whether a search was made."""
        trigger = self._trigger(model, usable, left_out, now)
        if trigger is None:
            self._blocked = self._infeasible = None
            return False
        workload = self._workload(model)
        signature = (
            model.revision,
            workload,
            *((d.id, d.memory_bytes, d.speed, d.link, d.owner) for d in usable.values()),
            *sorted(self.knowledge.cordoned()),
        )
        if signature == self._blocked:
            return False
        cordoned = {name: usable[name] for name in self.knowledge.cordoned() & usable.keys()}
        left_out = {**left_out, **dict.fromkeys(cordoned, "its owner lets it have nothing new")}
        question = Question(
            devices=[spec for name, spec in usable.items() if name not in cordoned],
            keepable=[spec for _, spec in sorted(cordoned.items())],
            model=model,
            workload=workload,
            objective=self._objective(now),
            left_out=[
                IdleDevice(device=device, reason=reason)
                for device, reason in left_out.items()
                if self.knowledge.devices[device].is_ready
            ],
            running=self._running(model),
            min_gain=self.settings.min_gain,
            seed=self.settings.seed,
            trigger=trigger,
            version=self.rollout.version + 1,
        )
        try:
            self._found = propose(question)
        except InfeasiblePlanError as error:
            self._blocked, self._infeasible = signature, f"no plan: {error}"
            self._note(f"{trigger}: {self._infeasible}")
        else:
            self._blocked = self._infeasible = None
        return True

    def _running(self, model: ModelSpec) -> Plan | None:
        running = self.rollout.active
        same = (model.revision, model.weights)
        if running is None or (running.revision, running.weights) != same:
            return None
        return running

    def _workload(self, model: ModelSpec) -> Workload:
        return fitted_workload(self.demand.workload(self.settings.workload), model)

    def _objective(self, now: float) -> Objective:
        """Return the objective; where plans follow each other, none repays much loading."""
        objective = self.settings.objective
        while self._adopted and now - self._adopted[0] > _RECENT_SECONDS:
            self._adopted.popleft()
        if len(self._adopted) <= _FEW_PLANS or not objective.horizon_seconds:
            return objective
        lasts = _RECENT_SECONDS / len(self._adopted)
        return replace(objective, horizon_seconds=min(objective.horizon_seconds, lasts))

    def _start_found(
        self, model: ModelSpec, usable: dict[str, DeviceSpec], now: float
    ) -> list[Publication]:
        """Carry out what the last search found, unless the fog changed meanwhile."""
        found = self._found
        if found is None:
            return []
        plan = found.plan
        is_next = plan.version == self.rollout.version + 1
        is_same_model = (plan.revision, plan.weights) == (model.revision, model.weights)
        are_here = all(s.device in usable for r in plan.replicas for s in r.stages)
        if not (is_next and is_same_model and are_here) or self._too_small(plan, model, usable):
            self._give_up_found("the fog changed while it was searched for")
            return []
        self._found = None
        at = self._utc_seconds
        self.history.add(found.text, msgspec.structs.replace(found.record, at=at))
        if found.record.outcome == "adopted":
            self._adopted.append(now)
        self._planned_with = dict(usable)
        self.knowledge.planned_speeds = dict(plan.speeds)
        plan = msgspec.structs.replace(plan, created_at=at)
        return self.rollout.start(plan, self.knowledge, model, now)

    def _give_up_found(self, why: str) -> None:
        if self._found is not None:
            self._note(f"plan {self._found.plan.version} is not published: {why}")
            self._found = None

    def _give_up(
        self, model: ModelSpec, usable: dict[str, DeviceSpec], now: float
    ) -> list[Publication]:
        """Drop the coming plan when one of its devices is lost, failed or hangs."""
        coming = self.rollout.coming
        if coming is None:
            return []
        for device in self.rollout.waiting_for(self.knowledge):
            view = self.knowledge.devices.get(device)
            silent = now - view.heard_seconds if view is not None else 0.0
            if view is not None and view.is_ready and silent > self.settings.load_seconds:
                wait = self.settings.retry_seconds
                error = f"it said nothing for {silent:.0f} s while loading"
                view.failure = Failure(error, 1, now + wait)
                usable.pop(device, None)
        stale = (coming.revision, coming.weights) != (model.revision, model.weights)
        if not stale and all(s.device in usable for r in coming.replicas for s in r.stages):
            return []
        self._note(f"plan {coming.version} is given up before it was active")
        return self.rollout.drop_coming(self.knowledge, model, now)

    def _trigger(
        self, model: ModelSpec, usable: dict[str, DeviceSpec], left_out: dict[str, str], now: float
    ) -> str | None:
        """Return what calls for a plan now, in words."""
        current = self.rollout.current
        quiet = now - self.knowledge.changed_seconds >= self.settings.settle_seconds
        if current is None or (current.revision, current.weights) != (
            model.revision,
            model.weights,
        ):
            if not usable or self._waits_for_devices(model, usable, now):
                return None
            if not quiet and not 0 < self.settings.expect_devices <= len(usable):
                return None
            return f"{len(usable)} devices for {model.name}"
        devices = {stage.device for replica in current.replicas for stage in replica.stages}
        gone = sorted(devices - set(usable))
        if gone:
            return "; ".join(f"{d} left ({left_out.get(d, 'it is gone')})" for d in gone)
        if self.rollout.coming is not None:
            return None
        small = self._too_small(current, model, usable)
        if small:
            return f"{', '.join(small)} cannot hold its stage any more"
        joined = sorted(set(usable) - set(current.reasons) - self.knowledge.cordoned())
        if joined and quiet:
            return f"{', '.join(joined)} joined"
        for name, spec in usable.items():
            speed = self.knowledge.planned_speeds.get(name, 1.0)
            self._planned_with.setdefault(name, replace(spec, speed=speed))
        changed = changes(self._planned_with, usable, self.settings.speed_threshold)
        workload = self._workload(model).fitted_to(model.context_limit)
        if drift := drift_text(current, workload, RULE.threshold):
            changed.append(drift)
        if hops := hop_text(current, self.demand.hop_overhead_seconds):
            changed.append(hops)
        return "; ".join(changed) or None

    def _too_small(self, plan: Plan, model: ModelSpec, usable: dict[str, DeviceSpec]) -> list[str]:
        tokens = kv_reserved_tokens(plan.context_tokens)
        return sorted(
            stage.device
            for replica in plan.replicas
            for stage in replica.stages
            if usable[stage.device].memory_bytes
            < model.stage_bytes(stage.layers.start, stage.layers.end, tokens)
        )

    def _waits_for_devices(
        self, model: ModelSpec, usable: dict[str, DeviceSpec], now: float
    ) -> bool:
        if now - self.knowledge.changed_seconds >= self.settings.wait_seconds:
            return False
        return len(usable) < self.settings.expect_devices or bool(self.knowledge.measuring(model))

    # --- status ---------------------------------------------------------------------------

    def _problem(self, model: ModelSpec, now: float) -> str | None:
        """Return what keeps a plan from being made or becoming active."""
        failures = "; ".join(
            f"{device} failed to load: {view.failure.error}"
            for device, view in sorted(self.knowledge.devices.items())
            if view.failure is not None
        )
        if self._infeasible is not None:
            return f"{failures}; {self._infeasible}" if failures else self._infeasible
        if self.rollout.active is not None and self.rollout.active.revision == model.revision:
            return None
        progress = self.rollout.progress(self.knowledge)
        if progress is None:
            usable, _ = self.knowledge.usable(model, now)
            measuring = self.knowledge.measuring(model)
            expected = max(self.settings.expect_devices, len(usable) + len(measuring))
            progress = f"waiting for devices: {len(usable)} of {expected} profiles"
            if not expected:
                progress = "waiting for devices: none is on the bus"
            elif measuring:
                progress += f"; measuring: {', '.join(measuring)}"
        return f"{failures}; {progress}" if failures else progress
