"""Which of several planners may publish, and how it says that it is there. No I/O, no clock."""

from __future__ import annotations

import msgspec.structs

from broker.codec import encode_control
from broker.control import DeviceState
from broker.plan import PlannerStatus
from broker.topics import PLANNER_STATUS
from broker.transport import Publication


def status_publication(site: str, status: PlannerStatus) -> Publication:
    """Return the publication of a planner's status; also used for its last will."""
    topic = PLANNER_STATUS
    return Publication(topic.path(site), encode_control(status), topic.qos, topic.retained)


class Authority:
    """This planner's claim to publish.

    Args:
        site: The fog's name.
        session: Of this start.
        lease_seconds: How long a claim holds that is not repeated.

    Attributes:
        refused_fields: Fields of telemetry that could not be read; told when the status is.

    The session of a status names the life of a planner that speaks, so that a reader can
    tell a late will from the word of the one who lives. It gives no rank: a planner that
    leads says ``ready`` again whenever another one's word or will lies over its own.
    """

    def __init__(self, site: str, session: int, lease_seconds: float) -> None:
        self._site = site
        self._session = session
        self._lease_seconds = lease_seconds
        self._lease: bool | None = None
        self._lease_until_seconds = 0.0
        self._other: PlannerStatus | None = None
        self._other_until_seconds = 0.0
        self._announced: PlannerStatus | None = None
        self._announced_seconds = 0.0
        self.refused_fields = 0

    def hear_store(self, lease: bool | None, asked_seconds: float) -> None:
        """Take in whether the store gave the lease; None when it does not answer.

        ``asked_seconds`` is from before the store was asked, so that the lease never ends
        there earlier than here.
        """
        self._lease = lease
        self._lease_until_seconds = asked_seconds + self._lease_seconds

    def hear_planner(self, status: PlannerStatus | None, now: float) -> None:
        """Take in a planner's status from the bus, the own echo included."""
        is_ours = status is not None and status.session == self._session
        if is_ours and status is not None and status.state is DeviceState.READY:
            return
        # Another one's word, or a will, lies over ours: say it again.
        self._announced = None
        if status is None or status.session == self._session:
            return
        self._other = status if status.state is DeviceState.READY else None
        self._other_until_seconds = now + self._lease_seconds

    def leads(self, now: float) -> bool:
        """Return whether this planner may publish.

        With a store the lease decides, until it ends: somebody else may have it then. Without
        one the word on the bus is the lease: a planner yields to one that has the store, else
        to the older one, for as long as that one repeats its status.
        """
        if self._lease is not None:
            return self._lease and now < self._lease_until_seconds
        other = self._other
        if other is None or now >= self._other_until_seconds:
            return True
        return not other.redis and self._session < other.session

    @property
    def has_store(self) -> bool:
        """Whether the store answered when it was asked last."""
        return self._lease is not None

    def forget_announced(self) -> None:
        """The broker may have lost the status, or it is not ours to give any more."""
        self._announced = None

    def announce(self, problem: str | None, now: float) -> list[Publication]:
        """Return the status when it is news, or must be repeated."""
        status = PlannerStatus(
            state=DeviceState.READY,
            session=self._session,
            problem=problem,
            redis=self.has_store,
        )
        news = msgspec.structs.replace(status, refused_fields=self.refused_fields)
        # The repeated status is what keeps a planner quiet that does not reach the store.
        repeat = now - self._announced_seconds >= self._lease_seconds / 3
        if status == self._announced and not repeat:
            return []
        self._announced = status
        self._announced_seconds = now
        # What is counted is no news: a device that goes on so would have it published each time.
        return [status_publication(self._site, news)]
