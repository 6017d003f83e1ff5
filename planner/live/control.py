"""The planner's decisions as a state machine: events in, publications out. No I/O, no clock.

There is at most one active plan, which serves, and one coming plan, which devices load
beside it. A coming plan becomes active when every one of its devices has its stages in
memory; some time later devices give up the stages of the plan before. Only the planner with
the lease publishes; another one listens and knows everything when it takes over.
"""

from __future__ import annotations

from typing import Final

from broker.plan import LoadState
from broker.transport import Publication
from planner.live.authority import Authority
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
from planner.live.rollout import Rollout
from planner.live.search import Search
from planner.live.settings import PlannerSettings
from planner.live.target import NoModelError, chosen_model, is_for
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
        self.rollout = Rollout(settings.site, settings.drain_seconds)
        self.authority = Authority(settings.site, session, settings.lease_seconds)
        self.history = History(settings.site)
        self._search = Search(settings, self.knowledge, self.rollout, self.history)
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
                    self._search.take_over(plan)
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
                self._search.look(now)
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
            self._search.give_up_found("another planner has the lease")
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
            self.knowledge.notice_silence(model, now)
            usable, left_out = self.knowledge.usable(model, now)
            publications += self._give_up(model, usable, now)
            publications += self.rollout.step(self.knowledge, model, now)
            publications += self._search.start_found(model, usable, now)
            if not publications:
                if self._search.seek(model, usable, left_out, now):
                    self.wants_look = True
                    return []
                publications += self._search.name_waiting(model, usable, now)
            problem = self._problem(model, now)
        # Numbers of a progress change often; the log is told of each kind of problem once.
        kind = problem.partition(":")[0] if problem is not None else None
        if problem is not None and kind != self._problem_told and self._search.infeasible is None:
            self.history.tell(problem)
        self._problem_told = kind
        return [
            *publications,
            *self.history.announce(),
            *self.authority.announce(problem, now),
        ]

    # --- planning -------------------------------------------------------------------------

    def _give_up(
        self, model: ModelSpec, usable: dict[str, DeviceSpec], now: float
    ) -> list[Publication]:
        """Drop the coming plan when one of its devices is lost, failed or hangs."""
        target = self.rollout.current
        if target is None or not self.rollout.is_changing:
            return []
        coming = self.rollout.coming or target
        for device in self.rollout.waiting_for(self.knowledge):
            view = self.knowledge.devices.get(device)
            silent = now - view.heard_seconds if view is not None else 0.0
            if view is not None and view.is_ready and silent > self.settings.load_seconds:
                wait = self.settings.retry_seconds
                error = f"it said nothing for {silent:.0f} s while loading"
                view.failure = Failure(error, 1, now + wait)
                usable.pop(device, None)
        is_wanted = is_for(coming, model)
        # On the way replicas serve that are left because one of their devices is unusable.
        needed = {stage.device for replica in target.replicas for stage in replica.stages}
        if is_wanted and needed <= usable.keys():
            return []
        self._note(f"plan {coming.version} is given up before it was active")
        return self.rollout.drop_coming(self.knowledge, model, now)

    # --- status ---------------------------------------------------------------------------

    def _problem(self, model: ModelSpec, now: float) -> str | None:
        """Return what keeps a plan from being made or becoming active."""
        failures = "; ".join(
            f"{device} failed to load: {view.failure.error}"
            for device, view in sorted(self.knowledge.devices.items())
            if view.failure is not None
        )
        if self._search.infeasible is not None:
            return f"{failures}; {self._search.infeasible}" if failures else self._search.infeasible
        if self.rollout.active is not None and is_for(self.rollout.active, model):
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
