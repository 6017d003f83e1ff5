"""What one device said of itself last, and what it was told. No I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec.structs

from broker.control import (
    DeviceControl,
    DeviceProfile,
    DeviceState,
    DeviceStatus,
    Link,
    OwnerRules,
)
from broker.plan import Assignment, Loaded, LoadState
from planner.live.conditions import Condition
from planner.live.losses import Losses
from planner.model import ModelSpec


@dataclass(slots=True)
class Failure:
    """A device could not load its stages.

    Attributes:
        error: Which tensor or URL, and why, as the device says it.
        times: How often in a row.
        until_seconds: The device is left out of plans until then.
    """

    error: str
    times: int
    until_seconds: float


@dataclass(slots=True)
class DeviceView:
    """The latest that a device said of itself, and what it was told."""

    status: DeviceStatus | None = None
    profile: DeviceProfile | None = None
    loaded: Loaded | None = None
    assigned: Assignment | None = None
    control: DeviceControl = field(default_factory=DeviceControl)
    condition: Condition = field(default_factory=Condition)
    failure: Failure | None = None
    # For how long it had been silent when that was noticed; it is gone until it says something.
    silent_seconds: float | None = None
    losses: Losses = field(default_factory=Losses)
    # When it last said something about loading; a device that says nothing has hung.
    heard_seconds: float = 0.0

    @property
    def is_ready(self) -> bool:
        """Whether the device is on the bus."""
        return self.status is not None and self.status.state is DeviceState.READY

    @property
    def is_there(self) -> bool:
        """Whether the device is on the bus and says something from time to time."""
        return self.is_ready and self.silent_seconds is None

    def is_busy_with(self, model: ModelSpec) -> bool:
        """Whether it loads, or measures itself for a model, and may well be silent meanwhile."""
        loaded, profile = self.loaded, self.profile
        if loaded is None or loaded.state in (LoadState.MEASURING, LoadState.LOADING):
            return True
        if self.assigned is not None and loaded.version < self.assigned.version:
            return True
        return profile is None or (profile.model_revision, profile.weights) != (
            model.revision,
            model.weights,
        )

    def has_loaded(self, stages: set[str], revision: str) -> bool:
        """Whether all ``stages`` of a revision are in memory, in the present session."""
        loaded = self.loaded
        if loaded is None or self.status is None or loaded.session < self.status.session:
            return False
        if loaded.state is not LoadState.LOADED or loaded.revision not in ("", revision):
            return False
        version = self.assigned.version if self.assigned is not None else 0
        return loaded.version >= version and stages <= set(loaded.stages)


def longest_job_seconds(view: DeviceView, speed: float) -> float:
    """Return what a device may compute without a pause: a chunk, in all layers of a stage."""
    if view.profile is None or view.assigned is None:
        return 0.0
    stages = (*view.assigned.hold, *view.assigned.prepare)
    layers = max((len(stage.layers) for stage in stages), default=0)
    # Short prompts take the most for a token.
    token_seconds = max(
        time.seconds / max(time.num_tokens, 1)
        for times in view.profile.blocks.values()
        for time in times.prefill
    )
    return layers * view.assigned.chunk_tokens * token_seconds / speed


def measured_times(profile: DeviceProfile) -> DeviceProfile:
    """Return a profile's times alone, whenever that was and over whatever link."""
    reference = Link(latency_seconds=0.0, bytes_per_second=1.0)
    return msgspec.structs.replace(
        profile, session=0, memory_bytes=0, link=reference, owner=OwnerRules()
    )
