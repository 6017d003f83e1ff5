"""Whether a fog that is not ready can still become so, or why waiting is in vain. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

from fog.progress import Snapshot

_NAMES_A_TENSOR: Final = re.compile(r"\btensors? \S")
"""In what a device says: its part of the checkpoint is missing, damaged or of a wrong shape."""
_INFEASIBLE: Final = "no plan: "
"""How the planner's problem begins when the devices that it knows cannot hold the model."""


def final_reason(snapshot: Snapshot, devices: Collection[str]) -> str | None:
    """Return why this fog will not become ready however long it is waited for, or None.

    What may heal is none: a device that is late, a hub out of reach, a download.

    Args:
        snapshot: What is known now.
        devices: Ids of all devices that are expected.
    """
    readiness = snapshot.readiness
    if readiness is None or readiness.ready:
        return None
    details = readiness.details
    if _damaged(details.get("load_errors")):
        return readiness.reason
    here = {str(d.get("id")) for d in snapshot.devices if d.get("state") == "ready"}
    if details.get("checkpoint_problems") and here.issuperset(devices):
        # Until they are here devices have had no say: which of them lacks what.
        return readiness.reason
    problem = details.get("planner_problem")
    if isinstance(problem, str) and problem.startswith(_INFEASIBLE):
        # One more device could hold what is missing.
        measured = {str(d.get("id")) for d in snapshot.devices if d.get("memory_bytes") is not None}
        if measured.issuperset(devices):
            return problem
    return None


def _damaged(load_errors: Mapping[str, Any] | None) -> bool:
    return any(_NAMES_A_TENSOR.search(str(error)) for error in (load_errors or {}).values())
