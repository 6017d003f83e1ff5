"""The active plan, the coming one, and the way from one to the other. No I/O, no clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final

import msgspec.structs

from broker.codec import encode_control
from broker.identity import identity
from broker.plan import Assignment, ModelStages, Plan, PlanState
from broker.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_LOADED,
    DEVICE_PROFILE,
    DEVICE_STATUS,
    DEVICE_TENSORS,
    PLAN,
)
from broker.transport import Publication
from planner.explain import format_bytes
from planner.live.assignments import Load, loads, stage_key
from planner.live.knowledge import Knowledge
from planner.live.needs import Needs
from planner.live.rolling import way
from planner.live.target import known_models

_EMPTY: Final = Load()
_HEARD_SECONDS: Final = 1.0
"""After this no gateway asks a replica for room that has left the plan."""


def _memory(knowledge: Knowledge) -> dict[str, int]:
    """Return the memory that each device offers to models."""
    return {
        device: view.memory_bytes
        for device, view in knowledge.devices.items()
        if view.profile is not None
    }


def _gives_up(active: Plan | None, coming: Plan) -> bool:
    """Return whether replicas serve that are not in the coming plan."""
    kept = {replica.id for replica in coming.all_replicas}
    return active is not None and any(replica.id not in kept for replica in active.all_replicas)


def _fits_beside(before: Assignment, target: Load, memory_bytes: int, needs: Needs) -> bool:
    """Return whether what a device gives up can end beside what it is to load.

    Of a model that nobody publishes nothing is known; a node frees that as its requests end.
    """
    wanted = [*target.hold, *target.prepare]
    keys = {(stage.replica, stage.stage) for stage in wanted}
    held = [stage for part in before.parts if needs.knows(part) for stage in part.stages]
    leaving = [stage for stage in held if (stage.replica, stage.stage) not in keys]
    if not leaving or not wanted:
        return True
    return needs.with_stages(before.parts).fit([*leaving, *wanted], memory_bytes)


class Rollout:
    """Which plans there are and what devices were told.

    Attributes:
        active: The plan that serves.
        coming: The plan whose stages devices are loading.
        version: Highest version of a plan that was seen anywhere.
    """

    def __init__(self, site: str, drain_seconds: float, leave_seconds: float = 300.0) -> None:
        self.active: Plan | None = None
        self.coming: Plan | None = None
        self.version = 0
        self._site = site
        self._drain_seconds = drain_seconds
        self._leave_seconds = leave_seconds
        self._shrink_seconds: float | None = None
        # Plans that follow the coming one, or the active one when nothing is loaded now.
        self._way: deque[Plan] = deque()

    @property
    def latest(self) -> Plan | None:
        """The latest plan on the bus, whether it serves already or not."""
        return self.coming or self.active

    @property
    def current(self) -> Plan | None:
        """The plan that serves, or where the fog is on its way to."""
        return self._way[-1] if self._way else self.latest

    @property
    def final_version(self) -> int:
        """Version of `current`, or that it will have at the end of the way."""
        return self.version + len(self._way)

    @property
    def is_changing(self) -> bool:
        """Whether the fog is on its way from one plan to another."""
        return self.coming is not None or bool(self._way)

    def hear(self, plan: Plan) -> bool:
        """Take over a plan from the bus unless it is old; return whether it was news.

        It is news from a predecessor, or from another planner that holds the lease.
        """
        ours = self.latest
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
        self._way.clear()
        if plan.state is PlanState.ACTIVE:
            self.active, self.coming = plan, None
        else:
            self.coming = plan
        return True

    def start(self, plan: Plan, knowledge: Knowledge, now: float) -> list[Publication]:
        """Begin to carry a plan out, with the next version; by way of others if need be."""
        ready = {device for device, view in knowledge.devices.items() if view.is_there}
        models = known_models(knowledge.models.values())
        self._way = deque(way(self.active, plan, _memory(knowledge), models, ready))
        return self._begin(self._way.popleft(), knowledge, now)

    def _begin(self, plan: Plan, knowledge: Knowledge, now: float) -> list[Publication]:
        self.version += 1
        self.coming = _in_state(plan, PlanState.PREPARING, self.version)
        self._shrink_seconds = None
        assigned = self._assign(knowledge, now)
        if not self.waiting_for(knowledge):
            return [*assigned, *self.step(knowledge, now)]
        return [*assigned, self._plan(self.coming)]

    def step(self, knowledge: Knowledge, now: float) -> list[Publication]:
        """Make the coming plan active when it is loaded; later, let old stages go."""
        if self.coming is not None:
            if self.waiting_for(knowledge):
                return []
            # Old stages stay for a while, so that running requests end where they are.
            drain = self._drain_seconds if _gives_up(self.active, self.coming) else 0.0
            if any(part.is_leaving for part in self.coming.parts):
                drain = _HEARD_SECONDS
            elif self._way:
                # Devices that lack memory wait for requests by themselves; gateways need to hear.
                drain = min(drain, _HEARD_SECONDS)
            self._shrink_seconds = now + drain
            self.active = _in_state(self.coming, PlanState.ACTIVE, self.version)
            self.coming = None
            published = [self._plan(self.active)]
            return [*published, *(self.step(knowledge, now) if drain == 0 else [])]
        if self._shrink_seconds is not None and now >= self._shrink_seconds:
            if self._way:
                if self.leaving(knowledge) and now < self._shrink_seconds + self._leave_seconds:
                    return []
                return self._begin(self._way.popleft(), knowledge, now)
            self._shrink_seconds = None
            return self._assign(knowledge, now)
        return []

    def leaving(self, knowledge: Knowledge) -> list[str]:
        """Return the models that leave and of which a gateway has unfinished requests."""
        parts = self.active.parts if self.active is not None else []
        return [
            part.model
            for part in parts
            if part.is_leaving and knowledge.is_finishing(part.revision)
        ]

    def drop_coming(self, knowledge: Knowledge, now: float) -> list[Publication]:
        """Give up the coming plan; devices go back to the stages of the active one."""
        self.coming = None
        self._way.clear()
        published = self._assign(knowledge, now) if self.active is not None else []
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
        latest = self.latest
        return [*publications, *([self._plan(latest)] if latest is not None else [])]

    def waiting_for(self, knowledge: Knowledge) -> dict[str, set[str]]:
        """Return the devices of the coming plan that are not ready, and their stages."""
        if self.coming is None:
            return {}
        needed: dict[str, set[str]] = {}
        for replica in (
            r for part in self.coming.parts if not part.is_leaving for r in part.replicas
        ):
            for index, stage in enumerate(replica.stages):
                needed.setdefault(stage.device, set()).add(stage_key(replica.id, index))
        return {
            device: stages
            for device, stages in sorted(needed.items())
            if device not in knowledge.devices or not knowledge.devices[device].has_loaded(stages)
        }

    def progress(self, knowledge: Knowledge) -> str | None:
        """Return in words what the coming plan waits for; None when there is none."""
        if self.coming is None:
            leaving = self.leaving(knowledge)
            return f"waiting for the end of requests to {', '.join(leaving)}" if leaving else None
        devices = {stage.device for r in self.coming.all_replicas for stage in r.stages}
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

    def _assign(self, knowledge: Knowledge, now: float) -> list[Publication]:
        """Tell each device whose stages change what to hold and what to prepare."""
        plans = [plan for plan in (self.active, self.coming, self.current) if plan is not None]
        needs = Needs.of(known_models(knowledge.models.values()), plans)
        if self.coming is None and self.active is not None and not needs.knows(self.active):
            # Nobody publishes it any more: what serves it stays until a plan for another model.
            return []
        memory = _memory(knowledge)
        ready = {device for device, view in knowledge.devices.items() if view.is_there}
        targets = loads(self.active, self.coming, memory, needs, ready)
        # The newest plan of a model says how it is held.
        parts = {identity(part): part for plan in plans for part in plan.parts}
        publications = []
        for device, view in sorted(knowledge.devices.items()):
            target = targets.get(device, _EMPTY)
            before = view.assigned
            if before is None and target == _EMPTY:
                continue
            version = self.version if before is None else max(self.version, before.version + 1)
            frees_first = before is not None and not _fits_beside(
                before, target, memory.get(device, 0), needs
            )
            wanted = _assignment_of(target, needs, list(parts.values()), version, frees_first)
            if before is not None and before == msgspec.structs.replace(
                wanted, version=before.version, frees_first=before.frees_first
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


def nothing_kept(site: str, device: str) -> list[Publication]:
    """Return what clears all that the broker keeps of a device."""
    return [
        Publication(topic.path(site, device=device), b"", topic.qos, topic.retained)
        for topic in (
            DEVICE_STATUS,
            DEVICE_PROFILE,
            DEVICE_LOADED,
            DEVICE_TENSORS,
            DEVICE_ASSIGNMENT,
        )
    ]


def _in_state(plan: Plan, state: PlanState, version: int) -> Plan:
    others = [_in_state(part, state, version) for part in plan.others]
    return msgspec.structs.replace(plan, version=version, state=state, others=others)


def _assignment_of(
    target: Load, needs: Needs, parts: Sequence[Plan], version: int, frees_first: bool
) -> Assignment:
    """Return what a device is told; first the model of which it has stages, if it has any."""
    by_model = []
    for part in reversed(parts):
        owned = [
            [stage for stage in stages if needs.owners[stage.replica] == identity(part)]
            for stages in (target.hold, target.prepare)
        ]
        held = ModelStages(
            model=part.model,
            revision=part.revision,
            weights=part.weights,
            kv_format=part.kv_format,
            kv_transfer=part.kv_transfer,
            chunk_tokens=part.chunk_tokens,
            hold=owned[0],
            prepare=owned[1],
        )
        by_model.append(held)
    first, *others = [held for held in by_model if held.stages] or by_model[:1]
    return Assignment(
        **msgspec.structs.asdict(first), version=version, frees_first=frees_first, others=others
    )
