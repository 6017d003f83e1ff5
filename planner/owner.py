"""What a device's owner allows, as the search sees it. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from broker.plan import LayerRange, Role

PHASES: Final = frozenset({Role.PREFILL, Role.DECODE})
ROLES: Final = (Role.PREFILL, Role.DECODE, Role.BOTH)


@dataclass(frozen=True, slots=True)
class Owner:
    """Limits that hold whatever a plan would gain without them.

    Attributes:
        phases: What the device may take part in; a replica that does both needs both.
        holds_text: Whether it may have embedding or head. Between the two there are only
            hidden states, so without them a device sees no token of anybody.
        layers: The layers that it holds when it is used at all; None: any.
        share: Part of the device that may be used, which its times contain already.
    """

    phases: frozenset[Role] = PHASES
    holds_text: bool = True
    layers: LayerRange | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        if not self.phases or not self.phases <= PHASES:
            raise ValueError("an owner allows prefill, decode or both of them")

    def allows(self, start: int, end: int, num_layers: int) -> bool:
        """Whether the device may hold layers ``[start, end)`` with their ends."""
        if self.layers is not None and (start, end) != (self.layers.start, self.layers.end):
            return False
        return self.holds_text or 0 < start < end < num_layers

    @property
    def text(self) -> str:
        """The limits in words; empty without any."""
        parts = []
        if self.share < 1:
            parts.append(f"{self.share:.0%} of it")
        if self.phases != PHASES:
            parts.append(f"{min(self.phases)} only")
        if not self.holds_text:
            parts.append("no embedding or head")
        if self.layers is not None:
            parts.append(f"layers {self.layers.start} to {self.layers.end - 1} or none")
        return ", ".join(parts)


FREE: Final = Owner()
"""Of a device that may be used in any way."""


def roles_of(owners: Iterable[Owner]) -> tuple[Role, ...]:
    """Return the roles that a replica of these owners' devices may have."""
    phases = PHASES.intersection(*(owner.phases for owner in owners))
    return tuple(role for role in ROLES if role in phases or phases == PHASES)
