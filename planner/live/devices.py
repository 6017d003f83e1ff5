"""What one device said of itself last, and what it was told. No I/O, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

from broker.control import (
    DeviceControl,
    DeviceProfile,
    DeviceState,
    DeviceStatus,
    ModelTimes,
    Placement,
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
    def is_removed(self) -> bool:
        """Whether its owner said that it does not come back.

        Then it is no user of the broker any more, or was off the bus: what its status says is old.
        """
        return self.control.placement is Placement.REMOVED

    @property
    def is_there(self) -> bool:
        """Whether the device is on the bus and says something from time to time."""
        return self.is_ready and self.silent_seconds is None

    def is_busy_with(self, model: ModelSpec) -> bool:
        """Whether it loads, or measures itself for a model, and may well be silent meanwhile."""
        loaded = self.loaded
        if loaded is None or loaded.state in (LoadState.MEASURING, LoadState.LOADING):
            return True
        if self.assigned is not None and loaded.version < self.assigned.version:
            return True
        return not self.has_measured(model)

    def has_measured(self, model: ModelSpec) -> bool:
        """Whether it has measured itself for a model."""
        profile = self.profile
        return profile is not None and profile.times_for(model.revision, model.weights) is not None

    @property
    def memory_bytes(self) -> int:
        """What it offers to models, in all; a share counts of the largest."""
        if self.profile is None:
            return 0
        return max(times.memory_bytes for times in (self.profile, *self.profile.others))

    def has_loaded(self, stages: set[str]) -> bool:
        """Whether all ``stages`` are in memory, in the present session."""
        loaded = self.loaded
        if loaded is None or self.status is None or loaded.session < self.status.session:
            return False
        if loaded.state is not LoadState.LOADED:
            return False
        version = self.assigned.version if self.assigned is not None else 0
        return loaded.version >= version and stages <= set(loaded.stages)


def longest_job_seconds(view: DeviceView, speed: float) -> float:
    """Return what a device may compute without a pause: a chunk, in all layers of a stage."""
    if view.profile is None or view.assigned is None:
        return 0.0
    longest = 0.0
    for part in view.assigned.parts:
        layers = max((len(stage.layers) for stage in part.stages), default=0)
        measured = view.profile.times_for(part.revision, part.weights) or view.profile
        # Short prompts take the most for a token.
        token_seconds = max(
            time.seconds / max(time.num_tokens, 1)
            for times in measured.blocks.values()
            for time in times.prefill
        )
        longest = max(longest, layers * part.chunk_tokens * token_seconds)
    return longest / speed


def has_other_times(known: DeviceProfile, profile: DeviceProfile) -> bool:
    """Whether a device measured itself anew: for models of both profiles times differ."""
    pairs = [
        (before, after)
        for before in (known, *known.others)
        for after in (profile, *profile.others)
        if (before.model_revision, before.weights) == (after.model_revision, after.weights)
    ]
    if not pairs:
        return True
    return any(_times(before) != _times(after) for before, after in pairs)


def _times(measured: ModelTimes) -> tuple[object, ...]:
    return measured.blocks, measured.embedding, measured.head
