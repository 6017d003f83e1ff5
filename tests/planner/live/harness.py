"""A planner's state machine with a clock, and devices that do as they are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from broker.codec import decode_control
from broker.control import DeviceState
from broker.plan import Assignment, LoadState, Plan, PlanHistory, PlannerStatus, PlanState
from broker.telemetry import Telemetry
from broker.topics import DEVICE_ASSIGNMENT, PLAN, PLAN_HISTORY, PLANNER_STATUS
from broker.transport import Publication
from planner.live.control import Control
from planner.live.events import (
    AssignmentSeen,
    BusUp,
    Event,
    HistorySeen,
    LoadedSeen,
    ModelSeen,
    PlannerSeen,
    PlanSeen,
    ProfileSeen,
    StatusSeen,
    StoreSeen,
    TelemetrySeen,
    event_of,
)
from planner.live.settings import PlannerSettings
from tests.planner import fogs

SPEEDS = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}


def settings(**changes: Any) -> PlannerSettings:
    values: dict[str, Any] = {
        "broker": "mqtt://localhost",
        "prompt_tokens": 64,
        "answer_tokens": 64,
        "context_tokens": 256,
    }
    return PlannerSettings(**{**values, **changes})


class Bench:
    """One planner and what it published last."""

    def __init__(self, session: int = 100, **changes: Any) -> None:
        self.control = Control(settings(**changes), session)
        self.now = 1000.0
        self.lease: bool | None = True
        self.telemetry: dict[str, Telemetry] = {}
        self.plans: list[Plan] = []
        self.assignments: dict[str, Assignment] = {}
        self.statuses: list[PlannerStatus] = []
        self.history = PlanHistory()
        self.cleared: list[str] = []
        self.sessions: dict[str, int] = {}
        self.obedient = True
        self.last_version = 0
        # Devices that report every two seconds.
        self.reporting: set[str] = set()
        self.frozen: set[str] = set()

    # --- what happens ---------------------------------------------------------------------

    def connect(self) -> Bench:
        self.handle(BusUp())
        return self

    def handle(self, event: Event) -> None:
        self._take(self.control.handle(event, self.now))

    def model(self, revision: str = "rev-1", **formats: str) -> Bench:
        self.handle(ModelSeen("demo", fogs.manifest(revision, **formats)))
        return self

    def join(self, *names: str, session: int = 1, revision: str = "rev-1", **profile: Any) -> Bench:
        for name in names:
            self.sessions[name] = session
            self.handle(StatusSeen(name, fogs.status(session)))
            values: dict[str, Any] = {"seconds": 0.001 * SPEEDS.get(name, 1), **profile}
            self.handle(
                ProfileSeen(name, fogs.profile(session=session, revision=revision, **values))
            )
        return self

    def leave(self, name: str) -> Bench:
        lost = fogs.status(self.sessions[name], DeviceState.LOST)
        self.handle(StatusSeen(name, lost))
        return self

    def slow_down(self, name: str, ratio: float) -> Bench:
        self.telemetry[name] = Telemetry(speed_ratio=ratio)
        return self

    def run(self, seconds: float, step: float = 0.5) -> Bench:
        """Let time pass: looks at the store every two seconds, devices load at once."""
        end = self.now + seconds
        while self.now < end:
            self.now += step
            if self.now % 2 < step:
                self.report(*sorted(self.reporting - self.frozen))
                self.look()
            self.tick()
            if self.obedient:
                self.load(*sorted(self.assignments.keys() - self.frozen))
        return self

    def tick(self) -> None:
        """Decide, and look again after a search, as the service does."""
        self._take(self.control.tick(self.now, 1.7e9 + self.now))
        if self.control.wants_look:
            self.look()
            self._take(self.control.tick(self.now, 1.7e9 + self.now))

    def look(self) -> None:
        self.handle(StoreSeen(self.lease, self.last_version, dict(self.telemetry)))

    def load(self, *names: str) -> None:
        """Let devices answer their assignments."""
        for name in names:
            wanted = self.assignments[name]
            stages = [f"{s.replica}/{s.stage}" for part in wanted.parts for s in part.stages]
            self.handle(
                LoadedSeen(
                    name,
                    fogs.loaded(
                        wanted.version,
                        stages,
                        self.sessions.get(name, 1),
                        revision=wanted.revision,
                    ),
                )
            )

    def report(self, *names: str) -> None:
        """Let nodes send telemetry of their own."""
        for name in names:
            self.handle(TelemetrySeen(name, Telemetry(kv_used_tokens=0)))

    def fail(self, name: str, error: str = "tensor x is damaged") -> None:
        self.handle(
            LoadedSeen(
                name,
                fogs.loaded(
                    self.assignments[name].version,
                    [],
                    self.sessions.get(name, 1),
                    state=LoadState.FAILED,
                    error=error,
                ),
            )
        )

    # --- what came of it ------------------------------------------------------------------

    def _take(self, publications: list[Publication]) -> None:
        for publication in publications:
            payload = bytes(publication.payload)
            assert publication.retained
            if not payload:
                self.cleared.append(publication.topic)
                if names := DEVICE_ASSIGNMENT.match(publication.topic):
                    del self.assignments[names["device"]]
                cleared = event_of(publication.topic, payload)
                if cleared is not None:
                    self.handle(cleared)
                continue
            if names := DEVICE_ASSIGNMENT.match(publication.topic):
                before = self.assignments.get(names["device"])
                found = decode_control(payload, Assignment)
                assert before is None or found.version > before.version or found == before
                self.assignments[names["device"]] = found
                self.handle(AssignmentSeen(names["device"], found))
            elif PLAN.match(publication.topic):
                self.plans.append(decode_control(payload, Plan))
                self.handle(PlanSeen(self.plans[-1]))
            elif PLAN_HISTORY.match(publication.topic):
                self.history = decode_control(payload, PlanHistory)
                self.handle(HistorySeen(self.history))
            elif PLANNER_STATUS.match(publication.topic):
                self.statuses.append(decode_control(payload, PlannerStatus))
                self.handle(PlannerSeen(self.statuses[-1]))

    @property
    def plan(self) -> Plan:
        return self.plans[-1]

    @property
    def num_plans_made(self) -> int:
        """How often a plan was made; on the way to one there may be others."""
        return sum(record.version is not None for record in self.history.decisions)

    @property
    def decisions(self) -> list[str]:
        """What the log was told."""
        return [decided.text for decided in self.control.history.fresh]

    @property
    def problem(self) -> str | None:
        return self.statuses[-1].problem

    @property
    def published(self) -> int:
        return len(self.plans) + len(self.statuses) + len(self.assignments)

    def devices(self, plan: Plan | None = None) -> set[str]:
        chosen = plan or self.plan
        return {stage.device for replica in chosen.replicas for stage in replica.stages}

    def aim(self) -> set[str]:
        """Return the devices that have stages, or will have them at the end of the way."""
        return self.devices(self.control.rollout.current)

    def retained_for(self, other: Bench) -> None:
        """Give another planner what the broker retains."""
        for name, session in self.sessions.items():
            view = self.control.knowledge.devices[name]
            other.sessions[name] = session
            other.handle(StatusSeen(name, view.status))
            other.handle(ProfileSeen(name, view.profile))
            other.handle(LoadedSeen(name, view.loaded))
            other.handle(AssignmentSeen(name, self.assignments.get(name)))
        other.handle(PlanSeen(self.plan))
        other.model()


def active(bench: Bench) -> bool:
    return bench.plan.state is PlanState.ACTIVE


def hold_of(assignments: Mapping[str, Assignment], device: str) -> set[str]:
    return {stage.replica for stage in assignments[device].hold}
