"""Which session of a device this is, and when it must say ``ready`` again. Pure."""

from __future__ import annotations

from enum import Enum

from broker.control import DeviceState, DeviceStatus


class Reaction(Enum):
    """What to do after a status under our own id."""

    NOTHING = "nothing"
    ANNOUNCE = "announce"
    """Publish ``ready`` again."""
    RESTART = "restart"
    """Connect again with the new session, which the last will carries too."""


class Presence:
    """Fences this run of a node against earlier ones and their late wills.

    Args:
        now_milliseconds: UTC; a run that starts later has a larger session.

    Attributes:
        session: Larger than every session that was seen under this id.
        is_announced: Whether this run has said ``ready``.
    """

    def __init__(self, now_milliseconds: int) -> None:
        self.session = now_milliseconds
        self.is_announced = False

    def see(self, status: DeviceStatus) -> Reaction:
        """Take in a status that somebody published under our id, perhaps we ourselves."""
        if status.session == self.session and self.is_announced:
            is_own_word = status.state is DeviceState.READY
            return Reaction.NOTHING if is_own_word else Reaction.ANNOUNCE
        if status.session >= self.session:
            self.session = status.session + 1
            self.is_announced = False
            return Reaction.RESTART
        return Reaction.ANNOUNCE
