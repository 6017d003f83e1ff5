"""What the gateway knows of the fog: plan, devices, planner, model. Immutable and pure.

Retained values arrive in any order and late wills overwrite newer ones, so knowledge is
compared by session and version: an older value never replaces a newer one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from broker.control import (
    GRAMMAR_VERSION,
    DeviceControl,
    DeviceProfile,
    DeviceState,
    DeviceStatus,
    ModelManifest,
    Placement,
)
from broker.plan import Loaded, Plan, PlannerStatus, PlanState, Replica
from broker.telemetry import Reading, Telemetry, merged


@dataclass(frozen=True, slots=True)
class DeviceView:
    """What one device said last.

    Attributes:
        telemetry: The latest of each field.
        control: What its owner asked at a gateway.
        refused_fields: Fields of telemetry that could not be read, so far.
        seen_at: When the newest message of the device arrived, on the gateway's clock.
    """

    id: str
    status: DeviceStatus | None = None
    profile: DeviceProfile | None = None
    loaded: Loaded | None = None
    telemetry: Telemetry | None = None
    refused_fields: int = 0
    control: DeviceControl = field(default_factory=DeviceControl)
    seen_at: float = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether the device says that it works."""
        return self.status is not None and self.status.state is DeviceState.READY

    @property
    def is_removed(self) -> bool:
        """Whether it was removed, and nothing is known of it but that."""
        return self.status is None and self.control.placement is Placement.REMOVED

    @property
    def session(self) -> int | None:
        """Session of the node's present run; None while its status is unknown."""
        return self.status.session if self.status is not None else None

    def holds(self, stage: str) -> bool:
        """Whether ``"<replica>/<stage>"`` is ready here, as far as the device has said.

        A device that restarted says `ready` before it has loaded anything, and its retained
        `Loaded` is still that of the session before: then it holds nothing. One that has
        not reported at all is trusted, since the plan became active with it.
        """
        if not self.is_ready or self.loaded is None:
            return self.is_ready
        assert self.status is not None
        return self.loaded.session >= self.status.session and stage in self.loaded.stages


@dataclass(frozen=True, slots=True)
class FogView:
    """One consistent picture. Every ``with_...`` returns a new one, or itself when stale.

    Attributes:
        active: The plan that requests are bound to.
        preparing: A newer plan whose nodes still load, beside the active one.
        model: The model that requests get which name none, or the one seen on the bus.
    """

    active: Plan | None = None
    preparing: Plan | None = None
    devices: Mapping[str, DeviceView] = field(default_factory=lambda: MappingProxyType({}))
    planner: PlannerStatus | None = None
    model: ModelManifest | None = None

    # --- what arrived ------------------------------------------------------------------------

    def with_plan(self, plan: Plan) -> FogView:
        """Take a plan in unless it is older than what is known."""
        active_version = self.active.version if self.active is not None else -1
        if plan.state is PlanState.ACTIVE:
            if plan.version < active_version:
                return self
            preparing = self.preparing
            if preparing is not None and preparing.version <= plan.version:
                preparing = None
            return replace(self, active=plan, preparing=preparing)
        newest = max(active_version, self.preparing.version - 1 if self.preparing else -1)
        # Equal to the active version it would be the same plan, said before it was active.
        return replace(self, preparing=plan) if plan.version > newest else self

    def with_status(self, device: str, status: DeviceStatus, now: float) -> FogView:
        """Take a device's status in; a will of an earlier session changes nothing."""
        known = self._device(device)
        if known.status is not None and status.session < known.status.session:
            return self
        return self._with_device(replace(known, status=status, seen_at=now))

    def with_profile(self, device: str, profile: DeviceProfile, now: float) -> FogView:
        """Take a device's profile in."""
        known = self._device(device)
        if known.profile is not None and profile.session < known.profile.session:
            return self
        return self._with_device(replace(known, profile=profile, seen_at=now))

    def with_loaded(self, device: str, loaded: Loaded, now: float) -> FogView:
        """Take in what a device has in memory; ordered by session, then plan version."""
        known = self._device(device)
        if known.loaded is not None and (loaded.session, loaded.version) < (
            known.loaded.session,
            known.loaded.version,
        ):
            return self
        return self._with_device(replace(known, loaded=loaded, seen_at=now))

    def with_telemetry(self, device: str, reading: Reading, now: float) -> FogView:
        """Take a device's telemetry in, field by field: several may speak for one device."""
        known = self._device(device)
        telemetry = merged(known.telemetry or Telemetry(), reading.telemetry)
        refused = known.refused_fields + len(reading.refused)
        return self._with_device(
            replace(known, telemetry=telemetry, refused_fields=refused, seen_at=now)
        )

    def with_control(self, device: str, control: DeviceControl) -> FogView:
        """Take in what an owner asked of a device; what was asked before changes nothing."""
        known = self._device(device)
        if control.at < known.control.at:
            return self
        return self._with_device(replace(known, control=control))

    def without_status(self, device: str) -> FogView:
        """Forget a device whose retained status was cleared, but for that it was removed."""
        control = self._device(device).control
        if control.placement is Placement.REMOVED:
            return self._with_device(DeviceView(device, control=control))
        return self.without_device(device)

    def without_control(self, device: str) -> FogView:
        """Nothing is asked of a device any more; one that was removed is forgotten."""
        known = self._device(device)
        if known.is_removed:
            return self.without_device(device)
        return self._with_device(replace(known, control=DeviceControl()))

    def without_device(self, device: str) -> FogView:
        """Forget a device."""
        devices = {key: view for key, view in self.devices.items() if key != device}
        return replace(self, devices=MappingProxyType(devices))

    def with_planner(self, status: PlannerStatus) -> FogView:
        """Take the planner's status in; a will of an earlier session changes nothing.

        ``ready`` counts whatever its session: only a planner that lives and leads says it,
        and it says it again over any other word (see `planner.live.authority`).
        """
        known = self.planner
        is_late_will = (
            known is not None
            and status.state is not DeviceState.READY
            and status.session < known.session
        )
        if is_late_will or status == known:
            return self
        return replace(self, planner=status)

    def with_model(self, manifest: ModelManifest) -> FogView:
        """Return what is known, for one model."""
        return self if manifest == self.model else replace(self, model=manifest)

    # --- what follows from it ----------------------------------------------------------------

    @property
    def serving(self) -> Plan | None:
        """The active plan for the model of this view, if there is one.

        Token ids of one model mean nothing to another, and in other formats it gives other
        answers than this gateway says.
        """
        if self.active is None or self.model is None:
            return self.active
        return self.active.part_for(self.model)

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """Replicas that requests may be bound to, complete or not."""
        return tuple(self.serving.replicas) if self.serving is not None else ()

    @property
    def complete_replicas(self) -> tuple[Replica, ...]:
        """Replicas of which every stage answers now."""
        return tuple(replica for replica in self.replicas if self.is_complete(replica))

    def utc_offset_of(self, device: str) -> int:
        """Return local time of a device minus UTC, in seconds; 0 while it has not said it."""
        profile = self._device(device).profile
        return profile.owner.utc_offset_seconds if profile is not None else 0

    def is_complete(self, replica: Replica) -> bool:
        """Whether every stage's device is ready and holds its stage."""
        return all(
            (device := self.devices.get(stage.device)) is not None
            and device.holds(f"{replica.id}/{index}")
            for index, stage in enumerate(replica.stages)
        )

    def knows_grammars(self, replica: Replica) -> bool:
        """Whether the device that chooses tokens in a replica follows a grammar."""
        status = self._device(replica.stages[-1].device).status
        return status is not None and status.speaks(GRAMMAR_VERSION)

    @property
    def planned_prompt_tokens(self) -> int:
        """Mean prompt that the serving plan is for; 0: not known."""
        return self.serving.prompt_tokens if self.serving is not None else 0

    @property
    def planned_hop_overhead(self) -> float:
        """What the serving plan says that hops take beside their links, in seconds."""
        return self.serving.hop_overhead_seconds if self.serving is not None else 0.0

    @property
    def arithmetics(self) -> tuple[str, ...]:
        """The ways in which devices of the serving plan compute, each once, as far as known."""
        plan = self.serving
        if plan is None:
            return ()
        profiles = (
            self._device(stage.device).profile
            for replica in plan.replicas
            for stage in replica.stages
        )
        known = (profile for profile in profiles if profile is not None)
        measured = (each.times_for(plan.revision, plan.weights) or each for each in known)
        return tuple(sorted({times.arithmetic for times in measured if times.arithmetic}))

    @property
    def arithmetic_problem(self) -> str | None:
        """What follows for answers where devices of the serving plan compute differently."""
        if len(self.arithmetics) < 2:
            return None
        return (
            f"devices of this plan compute differently ({'; '.join(self.arithmetics)}): an answer "
            "may differ from replica to replica, and after a device was lost"
        )

    def telemetry(self, device: str) -> Telemetry | None:
        """Return the latest telemetry of a device that is there."""
        view = self._device(device)
        return view.telemetry if view.is_ready else None

    def absent_devices(self) -> list[str]:
        """Devices of the serving plan that do not answer, in plan order."""
        names = (stage.device for replica in self.replicas for stage in replica.stages)
        return [name for name in dict.fromkeys(names) if not self._device(name).is_ready]

    def sessions(self, replicas: Iterable[Replica]) -> dict[str, int]:
        """Return the present session of each device that is ready and holds a stage."""
        found = {}
        for replica in replicas:
            for stage in replica.stages:
                device = self._device(stage.device)
                if device.is_ready and device.session is not None:
                    found[stage.device] = device.session
        return found

    def _device(self, device: str) -> DeviceView:
        return self.devices.get(device) or DeviceView(device)

    def _with_device(self, view: DeviceView) -> FogView:
        return replace(self, devices=MappingProxyType({**self.devices, view.id: view}))
