"""Which devices have fallen silent, though their connection says that they are there. No clock.

The broker notices a frozen process or a pulled plug after one and a half times the keep-alive.
Nodes report every two seconds, so missed reports say it earlier.
"""

from __future__ import annotations

from typing import Final

from broker.liveness import Liveness
from broker.telemetry import Telemetry

SILENT_SECONDS: Final = 6.0
"""Longer than a gateway waits (`broker.liveness.SILENT_SECONDS`): a request that goes elsewhere
costs less than a plan."""
MISSED_REPORTS: Final = 3.0
LONG_JOBS: Final = 3.0
"""A node's loop computes one job at a time and reports after it."""
_LONGEST_STEP: Final = 1.0
_RETURN_SECONDS: Final = 10.0
"""Clients of a broker that was away come back within five seconds (`broker.backoff`)."""


class Presence:
    """When devices were last heard of, in time that this planner was awake.

    A planner that was stopped, or searched for a plan, has messages before it that it has not
    read: whatever the clock says, one step of its loop is at most a second of silence.
    """

    def __init__(self) -> None:
        self._liveness = Liveness(SILENT_SECONDS, MISSED_REPORTS)
        self._awake_seconds = 0.0
        self._stepped_seconds: float | None = None
        self._excused_until = 0.0

    def step(self, now: float) -> None:
        """Let time pass, up to ``now`` on the planner's clock."""
        if self._stepped_seconds is not None:
            self._awake_seconds += min(max(now - self._stepped_seconds, 0.0), _LONGEST_STEP)
        self._stepped_seconds = now

    def bus_up(self) -> None:
        """The broker was away, for this planner or for all: devices come back after it."""
        self._excused_until = self._awake_seconds + _RETURN_SECONDS
        self._liveness.excuse(self._excused_until)

    @property
    def is_excused(self) -> bool:
        """Whether devices may be gone because the broker was."""
        return self._awake_seconds < self._excused_until

    def heard(self, device: str) -> None:
        """A device said something of itself."""
        self._liveness.heard(device, self._awake_seconds)

    def reported(self, device: str, telemetry: Telemetry) -> None:
        """Telemetry of a device arrived; only a node's own says that the node is there."""
        # Agents that watch a device know its temperature, and nothing of its KV cache.
        if telemetry.kv_used_tokens is not None:
            self._liveness.reported(device, self._awake_seconds)

    def silent_seconds(self, device: str, longest_job_seconds: float) -> float | None:
        """Return for how long a device has been silent, if that means that it is gone.

        Args:
            device: Which.
            longest_job_seconds: What it may compute without a pause, as it measured itself.
        """
        silence = self._liveness.silent_seconds(device, self._awake_seconds)
        if silence is None or silence < LONG_JOBS * longest_job_seconds:
            return None
        return silence
