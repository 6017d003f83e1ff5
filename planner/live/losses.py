"""How long a device must stay before it is trusted again, by how often it was lost lately. Pure.

Each loss costs a plan, and each return another one. A device that comes and goes would have the
fog load weights for ever, so after its second loss it must stay for a while before it gets
stages, and longer with every further one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WINDOW_SECONDS: Final = 600.0
"""Losses before that are forgotten."""
FREE_LOSSES: Final = 1
"""Everybody is restarted once in a while."""
FIRST_SECONDS: Final = 15.0
LONGEST_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class Losses:
    """The losses of one device.

    Attributes:
        lost: When, oldest first, on the planner's clock.
        back_seconds: Since when it has been there; None: it is lost.
    """

    lost: tuple[float, ...] = ()
    back_seconds: float | None = 0.0

    def after_loss(self, now: float) -> Losses:
        """Return the losses after one more."""
        recent = tuple(then for then in self.lost if now - then < WINDOW_SECONDS)
        return Losses((*recent, now), None)

    def after_return(self, now: float) -> Losses:
        """Return the same losses of a device that is there since ``now``."""
        return Losses(self.lost, now)

    def stay_seconds(self) -> float:
        """Return how long the device must stay, by its losses up to the latest."""
        further = len(self.lost) - FREE_LOSSES
        # Capped before it is doubled, so that no number of losses overflows.
        doubled: float = FIRST_SECONDS * 2.0 ** min(further - 1, 16)
        return min(doubled, LONGEST_SECONDS) if further >= 1 else 0.0

    def obstacle(self, now: float) -> str | None:
        """Return in words why the device must wait for stages; None when it need not."""
        if self.back_seconds is None or now - self.back_seconds >= self.stay_seconds():
            return None
        return (
            f"it was lost {len(self.lost)} times within {WINDOW_SECONDS / 60:g} minutes; it gets "
            f"stages when it has stayed for {self.stay_seconds():g} s"
        )
