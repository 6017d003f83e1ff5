"""Messages about a fog that is not there: a gateway asks the planner what it would plan. JSON.

As in `broker.control`: a message that exists is valid, and fields are only ever added.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

from msgspec import field

from broker.control import Control
from broker.plan import Considered, Plan, Rates

MOST_CHANGES: Final = 64
"""Devices that one question may change."""
LONGEST_WAIT_SECONDS: Final = 120.0


class AddedDevice(Control, frozen=True, kw_only=True):
    """A device that is supposed to be there.

    Attributes:
        like: The device that it is like: one of the fog, or one of the catalogue.
    """

    id: str
    like: str


class WhatIf(Control, frozen=True, kw_only=True):
    """Gateway to planner: which plan there would be if devices were other ones. Nothing moves.

    Attributes:
        request_id: Comes back in the answer.
        wait_seconds: The gateway waits for so long; a later answer is read by nobody.
        model: One in use; empty: the first by name.
        drop: Devices that are supposed to be gone.
        slow: Device to the factor on all its times; under 1 it is faster.
        add: Devices that are supposed to join.
    """

    request_id: str
    wait_seconds: float = 30.0
    model: str = ""
    drop: list[str] = field(default_factory=list)
    slow: dict[str, float] = field(default_factory=dict)
    add: list[AddedDevice] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 < len(self.request_id) <= 128:
            raise ValueError("request_id must have 1 to 128 characters")
        if not 0 < self.wait_seconds <= LONGEST_WAIT_SECONDS:
            raise ValueError(f"wait_seconds must be over 0 and at most {LONGEST_WAIT_SECONDS:g}")
        if not all(math.isfinite(factor) and factor > 0 for factor in self.slow.values()):
            raise ValueError("a factor in slow must be a number greater than 0")
        changed = [*self.drop, *self.slow, *(device.id for device in self.add)]
        if len(changed) > MOST_CHANGES:
            raise ValueError(f"at most {MOST_CHANGES} devices may be changed at once")
        if twice := sorted({device for device in changed if changed.count(device) > 1}):
            raise ValueError(f"changed twice: {', '.join(twice)}")


class Finding(StrEnum):
    """What became of a question."""

    PLANNED = "planned"
    """There is a plan."""
    IMPOSSIBLE = "impossible"
    """Such a fog holds the model in no way."""
    REFUSED = "refused"
    """The question makes no sense now, say of a device that is not there."""
    BUSY = "busy"
    """Another question is being answered."""
    FAILED = "failed"
    """It took too long, or broke off."""


class Move(Control, frozen=True, kw_only=True):
    """Weights that a device would have to load.

    Attributes:
        seconds: Over its link at its full rate.
    """

    device: str
    num_bytes: int
    seconds: float


class WhatIfAnswer(Control, frozen=True, kw_only=True):
    """Planner to a gateway: what it would plan. Never published as a plan.

    Attributes:
        reason: Why this plan, or why there is none.
        plan: With its prediction and the reason for each device's place; version 0.
        keeps_replicas: The replicas would be those that serve now.
        before: What the plan that serves now is predicted to do with the devices of now; None
            without one.
        moves: Which weights would move.
        considered: What was compared.
        by_data_sheet: Devices whose times nobody has measured.
        seconds: How long planning took.
    """

    request_id: str
    finding: Finding
    reason: str
    plan: Plan | None = None
    keeps_replicas: bool = False
    before: Rates | None = None
    moves: list[Move] = field(default_factory=list)
    considered: list[Considered] = field(default_factory=list)
    by_data_sheet: list[str] = field(default_factory=list)
    seconds: float = 0.0
