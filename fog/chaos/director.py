"""Brings the faults of a scenario to a fog at their times, and undoes them."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from fog.chaos.report import Incident
from fog.chaos.scenario import ROLES, SERVICES, Fault
from fog.chaos.testbed import FaultError, FaultyFog, UnsupportedFaultError

MAX_HARMED: Final = 2
"""Devices that what is drawn harms at once; a scenario that names devices may harm all."""
RECOVERY_SECONDS: Final = 4.0
"""How long after its fault a device still counts as harmed: it starts again, it comes back."""


def candidates(target: str, plan: Mapping[str, Any]) -> list[str]:
    """Return the devices or the service that a target means under a plan."""
    if target not in ROLES:
        return [target]
    replicas = plan.get("replicas", [])
    idle = [each["device"] for each in plan.get("idle", [])]
    stages = [
        (replica, index, stage["device"])
        for replica in replicas
        for index, stage in enumerate(replica["stages"])
    ]
    if target == "idle":
        return idle
    if target == "master":
        return [device for _, index, device in stages if index == 0]
    if target == "any":
        return [device for _, _, device in stages] + idle
    # Between two plans a role may have no replica; then any complete one serves both.
    found = [device for replica, _, device in stages if replica["role"] in (target, "both")]
    return found or [device for _, _, device in stages]


def choose(
    fault: Fault, plan: Mapping[str, Any], harmed: Collection[str], rng: random.Random
) -> tuple[str, str]:
    """Return whom a fault meets; or "" and why it meets nobody."""
    found = candidates(fault.target, plan)
    if fault.target in ROLES and len(set(harmed) - set(SERVICES)) >= MAX_HARMED:
        return "", f"{MAX_HARMED} devices are harmed already"
    whole = sorted(set(found) - set(harmed))
    if not whole:
        return "", f"{', '.join(found) or fault.target} is harmed already, or has no place"
    return rng.choice(whole), ""


@dataclass
class Director:
    """Runs a scenario in a thread of its own.

    Args:
        plan: Returns the body of ``GET /fog/plan`` as last seen.
        on_incident: Called with each fault as it happens.
    """

    testbed: FaultyFog
    faults: Sequence[Fault]
    plan: Callable[[], Mapping[str, Any]]
    rng: random.Random
    on_incident: Callable[[Incident], None] = lambda incident: None
    clock: Callable[[], float] = time.monotonic
    incidents: list[Incident] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._harmed: dict[str, float] = {}
        self.error: FaultError | None = None
        self._thread = threading.Thread(target=self._run, name="chaos-director", daemon=True)

    def start(self) -> None:
        """Begin: times of faults count from now."""
        self._thread.start()

    @property
    def is_done(self) -> bool:
        """Whether all faults have been, or one could not be brought."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Bring no more faults, and undo those that last."""
        self._stop.set()
        self._thread.join()
        self.testbed.restore()

    def _run(self) -> None:
        began = self.clock()
        order = itertools.count()
        # Time, what is undone before what begins, order, name ("": begins), fault.
        due = [(fault.at_seconds, 1, next(order), "", fault) for fault in self.faults]
        heapq.heapify(due)
        while due:
            at, _, _, name, fault = heapq.heappop(due)
            if self._stop.wait(max(0.0, began + at - self.clock())):
                return
            try:
                if name:
                    self.testbed.end(name, fault)
                    self._harmed[name] = self.clock() + RECOVERY_SECONDS
                elif (met := self._begin(fault)) and fault.lasts_seconds:
                    end = self.clock() - began + fault.lasts_seconds
                    heapq.heappush(due, (end, 0, next(order), met, fault))
            except FaultError as error:
                self.error = error
                return

    def _begin(self, fault: Fault) -> str:
        now = self.clock()
        harmed = [name for name, until in self._harmed.items() if until > now]
        name, skipped = choose(fault, self.plan(), harmed, self.rng)
        if name:
            try:
                self.testbed.begin(name, fault)
            except UnsupportedFaultError as error:
                name, skipped = "", str(error)
            else:
                self._harmed[name] = now + fault.lasts_seconds + RECOVERY_SECONDS
        incident = Incident(fault=fault, name=name or fault.target, at=now, skipped=skipped)
        self.incidents.append(incident)
        self.on_incident(incident)
        return name
