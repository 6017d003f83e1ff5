"""What the planner knows of models and devices, from what it heard. No I/O, no clock.

Retained messages arrive in any order and may be old: a value of an older session, or of the
same session and an older version, never replaces knowledge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from broker.control import (
    PROTOCOL_VERSION,
    DeviceControl,
    DeviceProfile,
    DeviceState,
    DeviceStatus,
    GatewayStatus,
    MeasuredLengths,
    ModelManifest,
    Placement,
)
from broker.identity import identity
from broker.plan import Loaded, LoadState
from broker.quiet import is_quiet
from broker.telemetry import Telemetry
from planner.live.conditions import Condition, Limits
from planner.live.devices import DeviceView, Failure, has_other_times, longest_job_seconds
from planner.live.events import (
    AssignmentSeen,
    BusUp,
    ControlSeen,
    Event,
    GatewaySeen,
    LoadedSeen,
    ModelSeen,
    ProfileSeen,
    StatusSeen,
    StoreSeen,
    TelemetrySeen,
)
from planner.live.inputs import UnusableProfileError, device_spec
from planner.live.presence import Presence
from planner.model import DeviceSpec, ModelSpec

_SAME_REQUESTS: Final = 16
"""Requests that each model is taken to have had beside those that were counted."""


class Knowledge:
    """Models, devices and gateways as the bus tells them.

    Args:
        limits: From when on a device has changed, or is left alone.

    Attributes:
        utc_seconds: The time of day, for quiet hours.
        hop_overhead_seconds: What every hop is planned to take beside its links.
        planned_speeds: Speeds that the latest plan was made with; those of devices of which
            nothing was read yet.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.models: dict[str, ModelManifest] = {}
        self.devices: dict[str, DeviceView] = {}
        self.utc_seconds = self.hop_overhead_seconds = 0.0
        self.planned_speeds: dict[str, float] = {}
        self._limits = limits or Limits()
        self._presence = Presence()
        self._gateways: dict[str, GatewayStatus] = {}
        # When the last device became ready or published a profile that was not known.
        self.changed_seconds = 0.0

    def view(self, device: str) -> DeviceView:
        """Return what is known of a device, nothing at first."""
        return self.devices.setdefault(device, DeviceView())

    def hear(self, event: Event, now: float) -> None:
        """Take in an event about models or devices; others are not its business."""
        self._hear_of(event, now)
        match event:
            case (
                ProfileSeen(device, None) | LoadedSeen(device, None) | ControlSeen(device, None)
            ) if device not in self.devices:
                pass  # What was kept of a device that is forgotten.
            case BusUp():
                self._presence.bus_up()
            case ModelSeen(model, None):
                self.models.pop(model, None)
            case ModelSeen(model, manifest) if manifest is not None:
                known = self.models.get(model)
                if known is None or identity(known) != identity(manifest):
                    self.changed_seconds = now
                self.models[model] = manifest
            case StatusSeen(device, status):
                self._hear_status(device, status, now)
            case ProfileSeen(device, profile):
                self._hear_profile(device, profile, now)
            case LoadedSeen(device, loaded):
                self._hear_loaded(self.view(device), loaded, now)
            case ControlSeen(device, control):
                known_control = self.view(device).control
                if control is None or control.at >= known_control.at:
                    self.view(device).control = control or DeviceControl()
            case AssignmentSeen(device, assignment) if assignment is not None:
                view = self.view(device)
                known_version = view.assigned.version if view.assigned is not None else -1
                if assignment.version >= known_version:
                    view.assigned = assignment
            case StoreSeen(telemetry=telemetry):
                for device, view in self.devices.items():
                    if view.profile is not None:
                        view.condition = self._condition(device, view).after(
                            telemetry.get(device, Telemetry()),
                            view.profile.link,
                            now,
                            self._limits,
                        )
            case GatewaySeen(gateway, status):
                if status is None or status.state is DeviceState.LOST:
                    self._gateways.pop(gateway, None)
                else:
                    self._gateways[gateway] = status
            case _:
                pass

    def _hear_of(self, event: Event, now: float) -> None:
        """Take in that a device says something, whatever it is."""
        match event:
            case TelemetrySeen(device, telemetry):
                self._presence.reported(device, telemetry)
                is_own = telemetry.kv_used_tokens is not None
            case StatusSeen(device, status) if status is not None:
                is_own = status.state is DeviceState.READY
            case ProfileSeen(device, message) | LoadedSeen(device, message):
                is_own = message is not None
            case _:
                return
        if not is_own:
            return
        self._presence.heard(device)
        view = self.devices.get(device)
        if view is not None and view.silent_seconds is not None:
            view.silent_seconds = None
            view.losses = view.losses.after_return(now)
            self.changed_seconds = now

    def forget_removed(self) -> dict[str, DeviceView]:
        """Forget the devices that were removed; return what was known of them."""
        removed = {name: view for name, view in sorted(self.devices.items()) if view.is_removed}
        for name in removed:
            del self.devices[name]
        return removed

    def notice_silence(self, models: Sequence[ModelSpec], now: float) -> None:
        """Let time pass, and leave devices out that should have said something by now."""
        self._presence.step(now)
        for device, view in self.devices.items():
            if view.is_there and not any(view.is_busy_with(model) for model in models):
                job = longest_job_seconds(view, self._condition(device, view).speed)
                view.silent_seconds = self._presence.silent_seconds(device, job)
                if view.silent_seconds is not None:
                    view.losses = view.losses.after_loss(now)

    def _hear_status(self, device: str, status: DeviceStatus | None, now: float) -> None:
        if status is None:
            # Cleared by a person: the device is gone for good.
            self.devices.pop(device, None)
            return
        view = self.view(device)
        if view.status is not None and status.session < view.status.session:
            return
        was_ready, was_there = view.is_ready, view.is_there
        is_same = was_ready and view.status is not None and view.status.session == status.session
        view.status = status
        has_gone = not view.is_ready or not is_same
        is_loss = was_there and has_gone and status.state is not DeviceState.SLEEPING
        if is_loss and not self._presence.is_excused:
            view.losses = view.losses.after_loss(now)
        if view.is_there and not is_same:
            view.losses = view.losses.after_return(now)
        if view.is_ready and not is_same:
            self.changed_seconds = view.heard_seconds = now
            if view.failure is not None:
                # A restarted device may have what it lacked.
                view.failure.until_seconds = now

    def _hear_profile(self, device: str, profile: DeviceProfile | None, now: float) -> None:
        view = self.view(device)
        known = view.profile
        if profile is not None and known is not None and profile.session < known.session:
            return
        if profile is not None and (known is None or known != profile):
            self.changed_seconds = now
        if profile is not None and known is not None and has_other_times(known, profile):
            # It measured itself anew: what was slow then may be what it measured now.
            view.condition = Condition.planned(1.0)
            self.planned_speeds.pop(device, None)
        view.profile = profile

    def _hear_loaded(self, view: DeviceView, loaded: Loaded | None, now: float) -> None:
        known = view.loaded
        if loaded is not None and known is not None:
            older = (loaded.session, loaded.version) < (known.session, known.version)
            if older:
                return
        view.loaded = loaded
        view.heard_seconds = now

    def usable(self, model: ModelSpec, now: float) -> tuple[dict[str, DeviceSpec], dict[str, str]]:
        """Return the devices that can be planned with, and why each other one cannot."""
        usable: dict[str, DeviceSpec] = {}
        left_out: dict[str, str] = {}
        for device, view in sorted(self.devices.items()):
            reason = self._obstacle(view, now)
            if reason is None and view.profile is not None:
                try:
                    condition = self._condition(device, view)
                    rules = view.control.rules
                    spec = device_spec(device, view.profile, condition, model, rules)
                    usable[device] = replace(spec, hop_overhead_seconds=self.hop_overhead_seconds)
                except UnusableProfileError as error:
                    reason = str(error)
            if reason is not None:
                left_out[device] = reason
        return usable, left_out

    def _obstacle(self, view: DeviceView, now: float) -> str | None:
        if view.status is None or not view.is_ready:
            return "it is not on the bus"
        if view.silent_seconds is not None:
            return f"it has said nothing for {view.silent_seconds:.0f} s"
        if view.status.protocol.split(".")[0] != PROTOCOL_VERSION.split(".")[0]:
            return (
                f"it speaks version {view.status.protocol} of the protocol, this fog "
                f"{PROTOCOL_VERSION}; install the same release on both"
            )
        if view.failure is not None and now < view.failure.until_seconds:
            return f"it failed to load: {view.failure.error}"
        if view.profile is None:
            return "it has not measured itself yet"
        rules = view.control.rules or view.profile.owner
        if view.control.placement is Placement.DRAINING:
            return "its owner drains it"
        if is_quiet(rules.quiet_hours, self.utc_seconds, rules.utc_offset_seconds):
            return f"its owner wants it left alone ({rules.quiet_hours})"
        if view.condition.rest is not None:
            return view.condition.rest.reason
        return None

    def cordoned(self) -> set[str]:
        """Return the devices that keep what they have and get nothing new."""
        return {
            device
            for device, view in self.devices.items()
            if view.control.placement is Placement.CORDONED
        }

    def waiting(self, now: float) -> dict[str, str]:
        """Return the devices that came and went, and get nothing new for a while, and why."""
        found = {
            device: view.losses.obstacle(now)
            for device, view in self.devices.items()
            if view.is_there
        }
        return {device: reason for device, reason in sorted(found.items()) if reason is not None}

    def _condition(self, device: str, view: DeviceView) -> Condition:
        if view.condition.levels:
            return view.condition
        return Condition.planned(self.planned_speeds.get(device, 1.0))

    def note_failure(
        self, device: str, error: str, now: float, retry_seconds: float
    ) -> float | None:
        """Leave a device out that failed to load; return for how long.

        Twice as long with each failure in a row. None when it failed at something else than
        what it was told last, or in an earlier session.
        """
        view = self.view(device)
        loaded, status, assigned = view.loaded, view.status, view.assigned
        is_stale = (
            loaded is None
            or loaded.state is not LoadState.FAILED
            or (status is not None and loaded.session < status.session)
            or (assigned is not None and loaded.version < assigned.version)
        )
        if is_stale:
            return None
        times = view.failure.times + 1 if view.failure is not None else 1
        wait: float = retry_seconds * 2 ** min(times - 1, 6)
        view.failure = Failure(error, times, now + wait)
        return wait

    def measuring(self, model: ModelSpec) -> list[str]:
        """Return the devices that have not measured themselves for a model yet."""
        return sorted(
            device
            for device, view in self.devices.items()
            if view.is_ready and view.failure is None and not view.has_measured(model)
        )

    def num_measured(self, model: ModelSpec) -> int:
        """Return how many devices have measured themselves for a model, those that rest included.

        A device that its owner wants left alone is there: waiting for it would be in vain.
        """
        return sum(
            view.is_ready and view.silent_seconds is None and view.has_measured(model)
            for view in self.devices.values()
        )

    def awaited(self, model: ModelSpec, num_expected: int, now: float) -> str:
        """Return in words what the first plan of a model waits for."""
        measuring, num_measured = self.measuring(model), self.num_measured(model)
        expected = max(num_expected, num_measured + len(measuring))
        if not expected:
            return "waiting for devices: none is on the bus"
        usable, left_out = self.usable(model, now)
        if not usable and num_measured == expected:
            reasons = "; ".join(f"{device}: {reason}" for device, reason in left_out.items())
            return f"no plan: no device can be used ({reasons})"
        also = f"; measuring: {', '.join(measuring)}" if measuring else ""
        return f"waiting for devices: {num_measured} of {expected} profiles{also}"

    def shares(self, revisions: Sequence[str]) -> list[float]:
        """Return which part of the requests each model gets, by the gateways that can say.

        Before there are many requests, each counts about the same.
        """
        asked = [
            _SAME_REQUESTS + sum(status.asked.get(each, 0) for status in self._gateways.values())
            for each in revisions
        ]
        return [number / sum(asked) for number in asked]

    def is_finishing(self, revision: str) -> bool:
        """Whether a gateway has unfinished requests of a model that is not in use any more."""
        return any(revision in status.finishing for status in self._gateways.values())

    def measured_hops(self) -> list[float]:
        """Return what hops take beside their links, by the gateways that can say."""
        return [
            status.hop_overhead_seconds
            for _, status in sorted(self._gateways.items())
            if status.hop_overhead_seconds is not None
        ]

    def measured_lengths(self) -> dict[str, MeasuredLengths]:
        """Return how long requests are, by the gateways that can say."""
        return {
            gateway: status.lengths
            for gateway, status in sorted(self._gateways.items())
            if status.lengths is not None
        }
