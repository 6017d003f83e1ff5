"""The planner's decisions as a state machine: events in, publications out. No I/O, no clock.

There is at most one active plan, which serves, and one coming plan, which devices load
beside it. A coming plan becomes active when every one of its devices has its stages in
memory; some time later devices give up the stages of the plan before. Only the planner with
the lease publishes; another one listens and knows everything when it takes over.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec.structs

from broker.placement import kv_reserved_tokens
from broker.plan import IdleDevice, LoadState, Plan
from broker.transport import Publication
from planner.live.authority import Authority
from planner.live.events import (
    AssignmentSeen,
    BusDown,
    BusUp,
    Event,
    LoadedSeen,
    PlannerSeen,
    PlanSeen,
    StoreSeen,
)
from planner.live.knowledge import Failure, Knowledge
from planner.live.rollout import Rollout
from planner.live.settings import PlannerSettings
from planner.live.target import NoModelError, chosen_model, fitted_workload
from planner.live.triggers import count_looks, decide, relative_speeds, speed_text
from planner.model import DeviceSpec, InfeasiblePlanError, ModelSpec
from planner.planning import plan_outcome, reassess


class Control:
    """One planner.

    Args:
        settings: What a person set.
        session: Grows with every start of a planner.

    Attributes:
        decisions: Plans started and problems met, oldest first, for log and history; the
            shell takes them out.
        wants_look: A search has ended, which may have taken longer than the lease lasts:
            nothing is published before the next look into the store.
    """

    def __init__(self, settings: PlannerSettings, session: int) -> None:
        self.settings = settings
        self.session = session
        self.knowledge = Knowledge()
        self.rollout = Rollout(settings.site, settings.drain_seconds)
        self.authority = Authority(settings.site, session, settings.lease_seconds)
        self.decisions: list[str] = []
        self.wants_look = False
        self._up_seconds: float | None = None
        self._heard_store = False
        self._must_republish = False
        self._counts: dict[str, int] = {}
        self._ratios: dict[str, float] = {}
        self._idle_speeds: dict[str, float] = {}
        # A plan that nobody has heard of yet, and what the log is told when it starts.
        self._found: tuple[Plan, str] | None = None
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
                    self._counts, self._idle_speeds = {}, {}
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
        view = self.knowledge.view(device)
        loaded, status, assigned = view.loaded, view.status, view.assigned
        stale = (
            loaded is None
            or loaded.state is not LoadState.FAILED
            or (status is not None and loaded.session < status.session)
            or (assigned is not None and loaded.version < assigned.version)
        )
        if stale:
            return
        times = view.failure.times + 1 if view.failure is not None else 1
        wait = self.settings.retry_seconds * 2 ** min(times - 1, 6)
        view.failure = Failure(error, times, now + wait)
        self.decisions.append(f"{device} failed to load: {error}; left out for {wait:g} s")

    def _look(self, now: float) -> None:
        """Compare speeds with those that the active plan was made with."""
        self._counts, counts = {}, self._counts
        active = self.rollout.active
        try:
            model = chosen_model(self.knowledge.models, self.settings.model)
        except NoModelError:
            return
        if active is None or self.rollout.coming is not None or active.revision != model.revision:
            return
        usable, _ = self.knowledge.usable(model, now)
        workload = fitted_workload(self.settings.workload, model)
        ratios = relative_speeds(active, usable, model, workload, self._idle_speeds)
        for device, spec in usable.items():
            self._idle_speeds.setdefault(device, spec.speed)
        self._counts = count_looks(counts, ratios, self.settings.speed_threshold)
        self._ratios = ratios

    # --- time -----------------------------------------------------------------------------

    def tick(self, now: float, utc_seconds: float = 0.0) -> list[Publication]:
        """Decide what is due; nothing before all retained state had time to arrive.

        A tick that searches for a plan publishes nothing. The next one does, when the look
        that `wants_look` asks for has renewed the lease.
        """
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
            publications += self.rollout.republished(self.knowledge)
        try:
            model = chosen_model(self.knowledge.models, self.settings.model)
        except NoModelError as error:
            problem: str | None = str(error)
        else:
            usable, left_out = self.knowledge.usable(model, now)
            publications += self._give_up(model, usable, now)
            publications += self.rollout.step(self.knowledge, model, now)
            publications += self._start_found(model, usable, now, utc_seconds)
            if not publications and self._search(model, usable, left_out, now):
                self.wants_look = True
                return []
            problem = self._problem(model, now)
        # Numbers of a progress change often; the log is told of each kind of problem once.
        kind = problem.partition(":")[0] if problem is not None else None
        if problem is not None and kind != self._problem_told and self._infeasible is None:
            self.decisions.append(problem)
        self._problem_told = kind
        return [*publications, *self.authority.announce(problem, now)]

    # --- planning -------------------------------------------------------------------------

    def _search(
        self, model: ModelSpec, usable: dict[str, DeviceSpec], left_out: dict[str, str], now: float
    ) -> bool:
        """Search for a plan if something calls for one; return whether a search was made."""
        trigger = self._trigger(model, usable, left_out, now)
        if trigger is None:
            self._blocked = self._infeasible = None
            return False
        signature = (
            model.revision,
            *((d.id, d.memory_bytes, round(d.speed, 2)) for d in usable.values()),
        )
        if signature == self._blocked:
            return False
        try:
            self._found = self._next_plan(model, list(usable.values()), left_out, trigger)
        except InfeasiblePlanError as error:
            self._blocked, self._infeasible = signature, f"no plan: {error}"
            self.decisions.append(f"{trigger}: {self._infeasible}")
        else:
            self._blocked = self._infeasible = None
        return True

    def _start_found(
        self, model: ModelSpec, usable: dict[str, DeviceSpec], now: float, utc_seconds: float
    ) -> list[Publication]:
        """Carry out what the last search found, unless the fog changed meanwhile."""
        if self._found is None:
            return []
        plan, decision = self._found
        is_next = plan.version == self.rollout.version + 1
        is_same_model = (plan.revision, plan.weights) == (model.revision, model.weights)
        are_here = all(s.device in usable for r in plan.replicas for s in r.stages)
        if not (is_next and is_same_model and are_here) or self._too_small(plan, model, usable):
            self._give_up_found("the fog changed while it was searched for")
            return []
        self._found = None
        self.decisions.append(decision)
        self._counts = {}
        self._idle_speeds = {name: spec.speed for name, spec in usable.items()}
        plan = msgspec.structs.replace(plan, created_at=utc_seconds)
        return self.rollout.start(plan, self.knowledge, model, now)

    def _give_up_found(self, why: str) -> None:
        if self._found is not None:
            self.decisions.append(f"plan {self._found[0].version} is not published: {why}")
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
        self.decisions.append(f"plan {coming.version} is given up before it was active")
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
        joined = sorted(set(usable) - set(current.reasons))
        if joined and quiet:
            return f"{', '.join(joined)} joined"
        changed = sorted(d for d, n in self._counts.items() if n >= self.settings.looks)
        if changed:
            return "; ".join(speed_text(device, self._ratios[device]) for device in changed)
        return None

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
        return len(usable) < self.settings.expect_devices or bool(self._measuring(model))

    def _measuring(self, model: ModelSpec) -> list[str]:
        return sorted(
            device
            for device, view in self.knowledge.devices.items()
            if view.is_ready
            and view.failure is None
            and (view.profile is None or view.profile.model_revision != model.revision)
        )

    def _next_plan(
        self,
        model: ModelSpec,
        devices: list[DeviceSpec],
        left_out: dict[str, str],
        trigger: str,
    ) -> tuple[Plan, str]:
        settings = self.settings
        workload, objective = fitted_workload(settings.workload, model), settings.objective
        running = self.rollout.active
        if running is not None and (running.revision, running.weights) != (
            model.revision,
            model.weights,
        ):
            running = None
        dark = sorted(device.id for device in devices if device.idle_watts is None)
        if objective.energy_weight and dark:
            objective = replace(objective, energy_weight=0.0)
        best = plan_outcome(devices, model, workload, objective, settings.seed, running)
        kept = None
        if running is not None:
            kept = reassess(running, devices, model, workload, objective)
        decision = decide(running, kept, best, settings.min_gain)
        plan = decision.outcome.plan
        out = [
            IdleDevice(device=device, reason=reason)
            for device, reason in left_out.items()
            if self.knowledge.devices[device].is_ready
        ]
        version = self.rollout.version + 1
        what = "keeps the replicas" if decision.is_kept else "plans"
        rate = plan.predicted.requests_per_second or 0.0
        text = (
            f"plan {version}: {trigger}; {what}: {decision.reason}; {len(plan.replicas)} replicas "
            f"on {len(plan.reasons) - len(plan.idle)} devices, {rate:.3g} requests per second; "
            f"{plan.optimality}"
        )
        if settings.energy_weight and dark:
            text += f"; energy does not count, as nobody says the power of {', '.join(dark)}"
        plan = msgspec.structs.replace(
            plan,
            version=version,
            trigger=f"{trigger}; {decision.reason}",
            idle=[*plan.idle, *out],
        )
        return plan, text

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
            measuring = self._measuring(model)
            expected = max(self.settings.expect_devices, len(usable) + len(measuring))
            progress = f"waiting for devices: {len(usable)} of {expected} profiles"
            if not expected:
                progress = "waiting for devices: none is on the bus"
            elif measuring:
                progress += f"; measuring: {', '.join(measuring)}"
        return f"{failures}; {progress}" if failures else progress
