"""The planner's decisions as a state machine: events in, publications out. No I/O, no clock.

There is at most one active plan, which serves, and one coming plan, which devices load
beside it. A coming plan becomes active when every one of its devices has its stages in
memory; some time later devices give up the stages of the plan before. Only the planner with
the lease publishes; another one listens and knows everything when it takes over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec.structs

from broker.identity import ModelIdentity, identity
from broker.plan import LoadState, Plan
from broker.transport import Publication
from broker.whatif import WhatIf
from planner.live.authority import Authority
from planner.live.demand import Demand
from planner.live.devices import Failure
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
from planner.live.knowledge import Knowledge
from planner.live.rollout import Rollout, nothing_kept
from planner.live.search import Search
from planner.live.settings import PlannerSettings
from planner.live.sharing import Claim, groups
from planner.live.suppositions import Supposition
from planner.live.target import NoModelError, chosen_models
from planner.model import DeviceSpec, ModelSpec

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
        self.rollout = Rollout(settings.site, settings.drain_seconds, settings.leave_seconds)
        self.authority = Authority(settings.site, session, settings.lease_seconds)
        self.history = History(settings.site)
        self._searches: dict[ModelIdentity, Search] = {}
        # With what they follow from, which seldom changes.
        self._groups: tuple[object, object, dict[ModelIdentity, set[str]]] = (None, None, {})
        self.wants_look = False
        self._up_seconds: float | None = None
        self._heard_store = False
        self._must_republish = False
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
                    for part in plan.parts:
                        self._search(identity(part)).take_over(part)
            case HistorySeen(history):
                self.history.hear(history)
            case PlannerSeen(status):
                self.authority.hear_planner(status, now)
            case StoreSeen():
                self._heard_store = True
                self.wants_look = False
                self.authority.hear_store(event.lease, now)
                self.authority.refused_fields = event.refused_fields
                self.rollout.version = max(self.rollout.version, event.last_version)
                for search in self._searches.values():
                    search.look(now)
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

    def _note(self, text: str) -> None:
        """Remember what became of a plan, or why there is none."""
        self.history.note(text, self.knowledge.utc_seconds)

    # --- time -----------------------------------------------------------------------------

    def tick(self, now: float, utc_seconds: float = 0.0) -> list[Publication]:
        """Decide what is due; nothing before all retained state had time to arrive.

        A tick that searches for a plan publishes nothing. The next one does, when the look
        that `wants_look` asks for has renewed the lease.
        """
        self.knowledge.utc_seconds = utc_seconds
        if self._up_seconds is None or not self._heard_store or self.wants_look:
            return []
        if now - self._up_seconds < self.settings.settle_seconds:
            return []
        if not self.authority.leads(now):
            self.authority.forget_announced()
            for search in self._searches.values():
                search.give_up_found("another planner has the lease")
            return []
        publications = self._forget_removed()
        if self._must_republish:
            self._must_republish = False
            self.authority.forget_announced()
            self.history.republish()
            publications += self.rollout.republished(self.knowledge)
        try:
            goals = self._goals(now)
        except NoModelError as error:
            problem: str | None = str(error)
        else:
            publications += self._give_up(goals, now)
            publications += self.rollout.step(self.knowledge, now)
            publications += self._retire(goals, now)
            for goal in goals:
                publications += self._search(goal.key).start_found(goal.model, goal.usable, now)
            if not publications:
                for goal in filter(self._may_search, goals):
                    search = self._search(goal.key)
                    if search.seek(goal.model, goal.usable, goal.left_out, now, goal.share):
                        self.wants_look = True
                        return []
                    publications += search.name_waiting(goal.model, goal.usable, now)
            problem = self._problem(goals, now)
        # Numbers of a progress change often; the log is told of each kind of problem once.
        kind = problem.partition(":")[0] if problem is not None else None
        is_noted = any(search.infeasible for search in self._searches.values())
        if problem is not None and kind != self._problem_told and not is_noted:
            self.history.tell(problem)
        self._problem_told = kind
        return [
            *publications,
            *self.history.announce(),
            *self.authority.announce(problem, now),
        ]

    def _forget_removed(self) -> list[Publication]:
        removed = self.knowledge.forget_removed()
        for device, view in removed.items():
            if view.status is not None:
                self._note(f"{device} was removed")
        return [each for name in removed for each in nothing_kept(self.settings.site, name)]

    # --- planning -------------------------------------------------------------------------

    def supposition(self, asked: WhatIf, now: float) -> Supposition:
        """Return what a question is about: what would be planned for now.

        Raises:
            NoModelError: There is nothing to plan for, or the model that it names is not in use.
        """
        goals = self._goals(now)
        goal = next((each for each in goals if asked.model in ("", each.model.name)), None)
        if goal is None:
            names = ", ".join(each.model.name for each in goals)
            raise NoModelError(f"no model {asked.model} is in use; in use: {names}")
        manifests = self.knowledge.models.values()
        manifest = next(each for each in manifests if identity(each) == goal.key)
        search = self._search(goal.key)
        question = search.question(goal.model, goal.usable, goal.left_out, "", now)
        return Supposition(asked, question, manifest)

    def _search(self, key: ModelIdentity) -> Search:
        """Return the search for plans of a model."""
        if key not in self._searches:
            known = self.settings, self.knowledge, self.rollout, self.history
            demand = next((search.demand for search in self._searches.values()), Demand())
            self._searches[key] = Search(key, *known, self._start, demand)
        return self._searches[key]

    def _goals(self, now: float) -> list[Goal]:
        """Return the models in use, each with the devices that are its own.

        Raises:
            NoModelError: There is nothing to plan for.
        """
        models = chosen_models(self.knowledge.models, self.settings.model)
        self.knowledge.notice_silence(models, now)
        seen = {identity(model): self.knowledge.usable(model, now) for model in models}
        shares = self.knowledge.shares([model.revision for model in models])
        claims = [
            Claim(model, seen[identity(model)][0], share, self.settings.workload.context_tokens)
            for model, share in zip(models, shares, strict=True)
        ]
        for key in seen:
            self._search(key)
        for key in self._searches.keys() - seen.keys():
            del self._searches[key]
        found = self._grouped(claims)
        goals = []
        for claim in claims:
            key = identity(claim.model)
            usable, left_out = seen[key]
            # What another model still holds comes later.
            others = self._held_by_others(key)
            own = {n: spec for n, spec in usable.items() if n in found[key] and n not in others}
            is_whole = found[key].isdisjoint(others)
            share = claim.share if len(claims) > 1 else 0.0
            goals.append(Goal(claim.model, own, left_out, share, is_whole))
        return goals

    def _held_by_others(self, key: ModelIdentity) -> set[str]:
        """Return the devices with stages of other models that are in use."""
        current = self.rollout.current
        return {
            stage.device
            for part in (current.parts if current is not None else ())
            if identity(part) != key and identity(part) in self._searches
            for replica in part.replicas
            for stage in replica.stages
        }

    def _may_search(self, goal: Goal) -> bool:
        """Whether a model has its devices; one without a plan waits until others have left them."""
        current = self.rollout.current
        return goal.is_whole or (current is not None and current.part_for(goal.model) is not None)

    def _grouped(self, claims: Sequence[Claim]) -> dict[ModelIdentity, set[str]]:
        is_stuck = any(search.infeasible for search in self._searches.values())
        asked = tuple((identity(claim.model), *sorted(claim.devices)) for claim in claims)
        # On the way to a plan groups stay, or the way would lead elsewhere with each step.
        if self._groups[0] != asked or not self.rollout.is_changing:
            shared = (
                *(round(claim.share, 2) for claim in claims),
                *(d.memory_bytes for claim in claims for d in claim.devices.values()),
                self.rollout.current,
                is_stuck,
            )
            if self._groups[:2] != (asked, shared):
                found = groups(claims, self.rollout.current, is_stuck=is_stuck)
                self._groups = asked, shared, found
        return self._groups[2]

    def _start(self, plan: Plan, now: float) -> list[Publication]:
        """Carry out a plan for one model, beside those for the others that are in use."""
        current = self.rollout.current
        kept = [
            part
            for part in (current.parts if current is not None else ())
            if identity(part) != identity(plan) and identity(part) in self._searches
        ]
        return self.rollout.start(_merged([plan, *kept]), self.knowledge, now)

    def _retire(self, goals: Sequence[Goal], now: float) -> list[Publication]:
        """Let models leave that are not in use any more, when all those that are have a plan.

        Also one that is in use again, or that a planner before this one did not see off.
        """
        current, wanted = self.rollout.current, {goal.key for goal in goals}
        if current is None or self.rollout.is_changing:
            return []
        parts = [part for part in current.parts if identity(part) in wanted]
        is_settled = len(parts) == len(current.parts) and not any(p.is_leaving for p in parts)
        if is_settled or len(parts) < len(wanted):
            return []
        return self.rollout.start(_merged(parts), self.knowledge, now)

    def _give_up(self, goals: Sequence[Goal], now: float) -> list[Publication]:
        """Drop the coming plan when one of its devices is lost, failed or hangs."""
        target = self.rollout.current
        if target is None or not self.rollout.is_changing:
            return []
        usable = {goal.key: goal.usable for goal in goals}
        for device in self.rollout.waiting_for(self.knowledge):
            view = self.knowledge.devices.get(device)
            silent = now - view.heard_seconds if view is not None else 0.0
            if view is not None and view.is_ready and silent > self.settings.load_seconds:
                wait = self.settings.retry_seconds
                error = f"it said nothing for {silent:.0f} s while loading"
                view.failure = Failure(error, 1, now + wait)
                for each in usable.values():
                    each.pop(device, None)
        staying = [part for part in target.parts if not part.is_leaving]
        # On the way replicas serve that are left because one of their devices is unusable.
        if all(identity(part) in usable for part in staying) and all(
            stage.device in usable[identity(part)]
            for part in staying
            for replica in part.replicas
            for stage in replica.stages
        ):
            return []
        coming = self.rollout.coming or target
        self._note(f"plan {coming.version} is given up before it was active")
        return self.rollout.drop_coming(self.knowledge, now)

    # --- status ---------------------------------------------------------------------------

    def _problem(self, goals: Sequence[Goal], now: float) -> str | None:
        """Return what keeps a plan from being made or becoming active."""
        failures = "; ".join(
            f"{device} failed to load: {view.failure.error}"
            for device, view in sorted(self.knowledge.devices.items())
            if view.failure is not None
        )
        for goal in goals:
            infeasible = self._search(goal.key).infeasible
            if infeasible is not None:
                which = f"{goal.model.name}: " if len(goals) > 1 else ""
                return f"{failures}; {which}{infeasible}" if failures else f"{which}{infeasible}"
        active = self.rollout.active
        lacking = [goal for goal in goals if active is None or not active.part_for(goal.model)]
        if not lacking:
            return None
        progress = self.rollout.progress(self.knowledge)
        measuring = self.knowledge.measuring(lacking[0].model)
        if progress is None and len(goals) > 1 and not lacking[0].usable and not measuring:
            name, others = lacking[0].model.name, [g.model.name for g in goals if g not in lacking]
            progress = f"{name}: no plan: no device is left beside {', '.join(others)}"
        if progress is None:
            expected = self.settings.expect_devices
            progress = self.knowledge.awaited(lacking[0].model, expected, now)
        return f"{failures}; {progress}" if failures else progress


@dataclass(frozen=True, slots=True)
class Goal:
    """A model in use, and what it is planned with.

    Attributes:
        usable: The devices that are its own.
        left_out: Why each other device cannot be used.
        share: Of all requests; 0: it is the only model.
        is_whole: No device that is to be its own holds stages of another model in use.
    """

    model: ModelSpec
    usable: dict[str, DeviceSpec]
    left_out: dict[str, str]
    share: float
    is_whole: bool

    @property
    def key(self) -> ModelIdentity:
        """Which model it is."""
        return identity(self.model)


def _merged(parts: Iterable[Plan]) -> Plan:
    """Return one plan for several models, in the order of their names."""
    alone = [msgspec.structs.replace(part, others=[], is_leaving=False) for part in parts]
    first, *others = sorted(alone, key=lambda part: part.model)
    return msgspec.structs.replace(first, others=others)
