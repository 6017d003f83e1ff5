"""What the gateway says of plan and devices while faults come, looked at several times a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from fog.client import FogClient, FogRequestError, FogUnreachableError

POLL_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Sight:
    """The plan at one moment.

    Attributes:
        at: By the clock of the watch.
        devices: Those with a stage in it.
    """

    at: float
    version: int
    is_active: bool
    devices: frozenset[str]


class Watch:
    """Looks at the plan in a thread of its own.

    Attributes:
        sights: One per change of the plan, the newest last.
        plan: The body of ``GET /fog/plan`` as last seen.
        num_versions: Active plans seen.
    """

    def __init__(self, client: FogClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-watch", daemon=True)
        self.sights: list[Sight] = []
        self.plan: dict[str, Any] = {}

    def start(self) -> None:
        """Look once, then go on looking."""
        self._look()
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    @property
    def num_versions(self) -> int:
        """Different plans that were active."""
        return len({sight.version for sight in self.sights if sight.is_active})

    def seconds_to_plan_without(self, device: str, since: float, until: float) -> float | None:
        """Return how long after ``since`` a new plan was active that does without a device.

        None when the device had no place then, or no such plan came up to ``until``.
        """
        before = [sight for sight in self.sights if sight.at <= since]
        if not before or device not in before[-1].devices:
            return None
        for sight in self.sights[len(before) :]:
            if sight.at > until:
                break
            if sight.is_active and device not in sight.devices:
                return sight.at - since
        return None

    def _run(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            with suppress(FogUnreachableError, FogRequestError):
                self._look()

    def _look(self) -> None:
        plan = self._client.plan()
        self.plan = plan
        devices = frozenset(
            stage["device"] for replica in plan["replicas"] for stage in replica["stages"]
        )
        sight = Sight(self._clock(), plan["version"], plan["state"] == "active", devices)
        if not self.sights or _differs(sight, self.sights[-1]):
            self.sights.append(sight)


def _differs(one: Sight, other: Sight) -> bool:
    return (one.version, one.is_active, one.devices) != (
        other.version,
        other.is_active,
        other.devices,
    )
