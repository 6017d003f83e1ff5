"""The active plan, the coming one, and the way from one to the other. No I/O, no clock."""

from __future__ import annotations

from typing import Final

import msgspec.structs

from broker.codec import encode_control
from broker.plan import Assignment, Plan, PlanState
from broker.topics import DEVICE_ASSIGNMENT, PLAN
from broker.transport import Publication
from planner.explain import format_bytes
from planner.live.assignments import Load, loads, stage_key
from planner.live.knowledge import Knowledge
from planner.live.target import is_for
from planner.model import ModelSpec

_EMPTY: Final = Load()


class Rollout:
    """Which plans there are and what devices were told.

    Attributes:
        active: The plan that serves.
        coming: The plan whose stages devices are loading.
        version: Highest version of a plan that was seen anywhere.
    """

    def __init__(self, site: str, drain_seconds: float) -> None:
        self.active: Plan | None = None
        self.coming: Plan | None = None
        self.version = 0
        self._site = site
        self._drain_seconds = drain_seconds
        self._shrink_seconds: float | None = None

    @property
    def current(self) -> Plan | None:
        """The latest plan, whether it serves already or not."""
        return self.coming or self.active

    def hear(self, plan: Plan) -> bool:
        """Take over a plan from the bus unless it is old; return whether it was news.

        It is news from a predecessor, or from another planner that holds the lease.
        """
        ours = self.current
        if ours is not None:
            if plan.version < self.version or plan == ours:
                return False
            if plan.version == self.version and not (
                self.coming is not None and plan.state is PlanState.ACTIVE
            ):
                return False
        # Without one of our own, what the bus retains is what serves, also when the store was
        # heard first and knows this version, or a later one that never reached the bus.
        self.version = max(self.version, plan.version)
        if plan.state is PlanState.ACTIVE:
            self.active, self.coming = plan, None
        else:
            self.coming = plan
        return True

    def start(
        self, plan: Plan, knowledge: Knowledge, model: ModelSpec, now: float
    ) -> list[Publication]:
        """Give ``plan`` the next version and begin to carry it out."""
        self.version += 1
        self.coming = msgspec.structs.replace(plan, version=self.version, state=PlanState.PREPARING)
        self._shrink_seconds = None
        assigned = self._assign(knowledge, model, now)
        if not self.waiting_for(knowledge):
            return [*assigned, *self.step(knowledge, model, now)]
        return [*assigned, self._plan(self.coming)]

    def step(self, knowledge: Knowledge, model: ModelSpec, now: float) -> list[Publication]:
        """Make the coming plan active when it is loaded; later, let old stages go."""
        if self.coming is not None:
            if self.waiting_for(knowledge):
                return []
            # Old stages stay for a while, so that running requests end where they are.
            drain = self._drain_seconds if self.active is not None else 0.0
            self._shrink_seconds = now + drain
            self.active = msgspec.structs.replace(self.coming, state=PlanState.ACTIVE)
            self.coming = None
            published = [self._plan(self.active)]
            return [*published, *(self.step(knowledge, model, now) if drain == 0 else [])]
        if self._shrink_seconds is not None and now >= self._shrink_seconds:
            self._shrink_seconds = None
            return self._assign(knowledge, model, now)
        return []

    def drop_coming(self, knowledge: Knowledge, model: ModelSpec, now: float) -> list[Publication]:
        """Give up the coming plan; devices go back to the stages of the active one."""
        self.coming = None
        published = self._assign(knowledge, model, now) if self.active is not None else []
        if self.active is not None:
            # The retained plan must be one that serves, for whoever starts now.
            published.append(self._plan(self.active))
        return published

    def republished(self, knowledge: Knowledge) -> list[Publication]:
        """Return all retained state again, after the broker may have lost it."""
        publications = [
            self._assignment(device, view.assigned)
            for device, view in sorted(knowledge.devices.items())
            if view.assigned is not None
        ]
        current = self.current
        return [*publications, *([self._plan(current)] if current is not None else [])]

    def waiting_for(self, knowledge: Knowledge) -> dict[str, set[str]]:
        """Return the devices of the coming plan that are not ready, and their stages."""
        if self.coming is None:
            return {}
        needed: dict[str, set[str]] = {}
        for replica in self.coming.replicas:
            for index, stage in enumerate(replica.stages):
                needed.setdefault(stage.device, set()).add(stage_key(replica.id, index))
        revision = self.coming.revision
        return {
            device: stages
            for device, stages in sorted(needed.items())
            if device not in knowledge.devices
            or not knowledge.devices[device].has_loaded(stages, revision)
        }

    def progress(self, knowledge: Knowledge) -> str | None:
        """Return in words what the coming plan waits for; None when there is none."""
        if self.coming is None:
            return None
        devices = {stage.device for r in self.coming.replicas for stage in r.stages}
        waiting = self.waiting_for(knowledge)
        views = [knowledge.devices[d] for d in devices if d in knowledge.devices]
        loaded = [view.loaded for view in views if view.loaded is not None]
        total = sum(answer.total_bytes for answer in loaded)
        size = ""
        if total:
            done = sum(min(answer.loaded_bytes, answer.total_bytes) for answer in loaded)
            size = f", {format_bytes(done)} of {format_bytes(total)}"
        return (
            f"loading plan {self.coming.version}: {len(devices) - len(waiting)} of "
            f"{len(devices)} devices are ready{size}; waiting for {', '.join(waiting)}"
        )

    def _assign(self, knowledge: Knowledge, model: ModelSpec, now: float) -> list[Publication]:
        """Tell each device whose stages change what to hold and what to prepare."""
        if self.coming is None and self.active is not None and not is_for(self.active, model):
            # The model has changed: what serves the old one stays until a plan for the new one.
            return []
        memory = {
            device: view.profile.memory_bytes
            for device, view in knowledge.devices.items()
            if view.profile is not None
        }
        ready = {device for device, view in knowledge.devices.items() if view.is_there}
        targets = loads(self.active, self.coming, memory, model, ready)
        current = self.current
        chunk_tokens = current.chunk_tokens if current is not None else 1
        publications = []
        for device, view in sorted(knowledge.devices.items()):
            target = targets.get(device, _EMPTY)
            before = view.assigned
            if before is None and target == _EMPTY:
                continue
            version = self.version if before is None else max(self.version, before.version + 1)
            wanted = Assignment(
                version=version,
                model=model.name,
                revision=model.revision,
                weights=model.weights,
                kv_format=model.kv_format,
                kv_transfer=model.kv_transfer,
                chunk_tokens=chunk_tokens,
                hold=list(target.hold),
                prepare=list(target.prepare),
            )
            if before is not None and before == msgspec.structs.replace(
                wanted, version=before.version
            ):
                continue
            view.assigned = wanted
            view.heard_seconds = now
            publications.append(self._assignment(device, wanted))
        return publications

    def _assignment(self, device: str, assignment: Assignment) -> Publication:
        topic = DEVICE_ASSIGNMENT
        return Publication(
            topic.path(self._site, device=device),
            encode_control(assignment),
            topic.qos,
            topic.retained,
        )

    def _plan(self, plan: Plan) -> Publication:
        return Publication(PLAN.path(self._site), encode_control(plan), PLAN.qos, PLAN.retained)
