"""Emulated devices and links: a slower device waits, a slower link delays. Off by default.

Waiting is not computing: a step takes its calibrated time times the slowdown, counted from
when it began, so time spent waiting for a core of a busy host is not counted twice.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from broker.topics import QoS
from broker.traffic import Traffic
from broker.transport import (
    Inbox,
    Publication,
    Received,
    Transport,
    TransportClosedError,
    TransportEvent,
)

logger = logging.getLogger(__name__)


def usual() -> float:
    """Return the hardship of a device that suffers nothing."""
    return 1.0


class Took(NamedTuple):
    """What a computation took.

    Attributes:
        seconds: By the clock, waiting included.
        active_seconds: What it would have taken with a core whenever it wanted one.
    """

    seconds: float
    active_seconds: float


class Pacer:
    """Makes computations take their time.

    Args:
        slowdown: How many times slower than this machine the device is; 1 never waits.
        hardship: How many times slower than that it is now.
        is_emulated: Whether a slow device stands for another one; else it is slow because its
            owner wants the rest of it for something else.
        wait: Sleeps for seconds; may return early when the node stops.
        clock: Monotonic seconds.
        core_clock: Seconds of a core that the computing thread has used.

    Attributes:
        late_steps: Computations that were not done when they should have been.
    """

    def __init__(
        self,
        slowdown: float,
        wait: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        core_clock: Callable[[], float] = time.thread_time,
        hardship: Callable[[], float] = usual,
        *,
        is_emulated: bool = True,
    ) -> None:
        self.slowdown = slowdown
        self._hardship = hardship
        self.is_emulated = is_emulated and slowdown > 1
        self.late_steps = 0
        self._wait = wait
        self._clock = clock
        self._core_clock = core_clock
        self._started = clock()
        self._core_started = core_clock()

    def begin(self) -> None:
        """A computation begins now."""
        self._started = self._clock()
        self._core_started = self._core_clock()

    def finish(self, calibrated_seconds: float | None, core_share: float = 1.0) -> Took:
        """Wait until the computation may be done, and return how long it took.

        Another one that follows without `begin` starts where this one should have ended.

        Args:
            calibrated_seconds: What it takes without slowdown; None when nobody knows.
            core_share: Share of a core that the thread used when the device measured
                itself; less than 1 where it waits for something else, as for other threads.
        """
        now, core_now = self._clock(), self._core_clock()
        active = (core_now - self._core_started) / core_share
        slowdown = self.slowdown * self._hardship()
        if calibrated_seconds is not None and slowdown > 1:
            seconds = calibrated_seconds * slowdown
            # A host may be slow for other reasons than the device that it stands for.
            active = seconds if self.is_emulated else max(active, seconds)
            due = self._started + seconds
            if due > now:
                self._wait(due - now)
                now = self._clock()
            else:
                self.late_steps += 1
        took = now - self._started
        self._started, self._core_started = now, self._core_clock()
        return Took(took, min(active, took))

    def canary(self, measure: Callable[[], float]) -> float:
        """Return how long a little computing takes the device, by ``measure`` on its host.

        What an emulated device takes is a matter of its emulation alone.
        """
        return self._hardship() * (1.0 if self.is_emulated else measure())


class LinkSchedule:
    """When messages have passed a link. Pure.

    Messages are serialised at the link's rate and arrive one delay later. Work goes before
    KV, as the second connection is there for: KV waits while work uses the link.

    Args:
        delay_seconds: One way.
        bytes_per_second: Each way; None: unlimited.
    """

    def __init__(self, delay_seconds: float, bytes_per_second: float | None) -> None:
        self._delay = delay_seconds
        self._rate = bytes_per_second
        self._busy_until: dict[tuple[str, bool], float] = {}

    def due(self, now: float, direction: str, num_bytes: int, *, is_kv: bool) -> float:
        """Return when a message that is sent now arrives."""
        seconds = 0.0 if self._rate is None else num_bytes / self._rate
        until = self._occupy(direction, is_kv, now, seconds)
        if not is_kv:
            self._occupy(direction, True, now, seconds)
        return until + self._delay

    def _occupy(self, direction: str, is_kv: bool, now: float, seconds: float) -> float:
        lane = (direction, is_kv)
        until = max(now, self._busy_until.get(lane, 0.0)) + seconds
        self._busy_until[lane] = until
        return until


class EmulatedLink:
    """One device's link to the broker, in both directions, for all its connections.

    One thread delivers what is due.
    """

    def __init__(self, schedule: LinkSchedule, clock: Callable[[], float] = time.monotonic) -> None:
        self._schedule = schedule
        self._clock = clock
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="emulated-link", daemon=True)
        self._thread.start()

    def send(
        self, direction: str, num_bytes: int, deliver: Callable[[], None], *, is_kv: bool
    ) -> None:
        """Call ``deliver`` when ``num_bytes`` have passed in ``direction``."""
        with self._changed:
            due = self._schedule.due(self._clock(), direction, num_bytes, is_kv=is_kv)
            heapq.heappush(self._due, (due, next(self._order), deliver))
            self._changed.notify()

    def close(self) -> None:
        """Forget what is on the way."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._is_closed and (not self._due or self._due[0][0] > self._clock()):
                    self._changed.wait(self._due[0][0] - self._clock() if self._due else None)
                if self._is_closed:
                    return
                deliver = heapq.heappop(self._due)[2]
            deliver()


class EmulatedInbox(queue.SimpleQueue[TransportEvent]):
    """An inbox in front of another: events arrive there when the link let them through.

    Stamped when the transport puts them, not when somebody reads, so delays do not add up.
    """

    def __init__(self, link: EmulatedLink, target: Inbox, *, is_kv: bool) -> None:
        super().__init__()
        self._link = link
        self._target = target
        self._is_kv = is_kv

    def put(self, item: TransportEvent, block: bool = True, timeout: float | None = None) -> None:
        """Let the event through the link."""
        # Connection events have no size, but keep their place between the messages.
        size = len(item.payload) if isinstance(item, Received) else 0
        self._link.send("down", size, lambda: self._target.put(item), is_kv=self._is_kv)


class EmulatedTransport:
    """A transport whose publications go through an emulated link."""

    def __init__(self, transport: Transport, link: EmulatedLink, *, is_kv: bool) -> None:
        self._transport = transport
        self._link = link
        self._is_kv = is_kv

    @property
    def inbox(self) -> Inbox:
        return self._transport.inbox

    @property
    def is_connected(self) -> bool:
        return self._transport.is_connected

    @property
    def traffic(self) -> Traffic:
        return self._transport.traffic

    def subscribe(self, filters: Iterable[tuple[str, QoS]]) -> None:
        self._transport.subscribe(filters)

    def publish(self, publication: Publication) -> None:
        def deliver() -> None:
            try:
                self._transport.publish(publication)
            except TransportClosedError:
                pass  # It left while the message was on the emulated wire.
            except ValueError as error:
                logger.error("a message could not be sent: %s", error)

        self._link.send("up", len(publication.payload), deliver, is_kv=self._is_kv)

    def receive(self, timeout_seconds: float | None = None) -> TransportEvent | None:
        return self._transport.receive(timeout_seconds)

    def close(self, farewell: Publication | None = None) -> None:
        self._transport.close(farewell)
