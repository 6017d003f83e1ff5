"""The planner as a process: bus and store on one side, `planner.live.control` on the other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event as Flag

from broker.codec import DecodeError
from broker.control import DeviceState
from broker.heartbeat import Heartbeat
from broker.metrics import Sample
from broker.plan import PlannerStatus
from broker.telemetry import Faults, complaint
from broker.transport import Connected, Disconnected, Publication, Received, Refused, Transport
from broker.whatif import Finding
from planner.live.authority import status_publication
from planner.live.control import Control
from planner.live.events import TOPICS, BusDown, BusUp, TelemetrySeen, WhatIfSeen, event_of
from planner.live.metrics import Refusals, samples
from planner.live.settings import PlannerSettings
from planner.live.side_search import SideSearch
from planner.live.store import Store
from planner.live.suppositions import unanswered
from planner.live.target import NoModelError

logger = logging.getLogger("planner")

_TICK_SECONDS = 0.2


class RefusedError(Exception):
    """The broker refused the planner's credential; trying again would not help."""


def farewell(settings: PlannerSettings, session: int) -> Publication:
    """Return what is said on leaving, and by the last will."""
    status = PlannerStatus(
        state=DeviceState.LOST, session=session, problem="the planner is not running"
    )
    return status_publication(settings.site, status)


class PlannerService:
    """Passes on events, time and telemetry, and publishes what follows.

    Args:
        transport: Connected to the broker, with `farewell` as its will.
        store: Telemetry and lease.
        settings: What a person set.
        session: Of this start; the same as in the will and the store.
        clock: Monotonic seconds.
        side_search: Answers what-if questions; by default in a process of its own.

    Attributes:
        samples: Metrics as of the last look, for other threads.
    """

    def __init__(
        self,
        transport: Transport,
        store: Store,
        settings: PlannerSettings,
        session: int,
        clock: Callable[[], float] = time.monotonic,
        utc: Callable[[], float] = time.time,
        side_search: SideSearch | None = None,
    ) -> None:
        self.control = Control(settings, session)
        self.num_refused_messages = 0
        self.samples: tuple[Sample, ...] = ()
        self._transport = transport
        self._store = store
        self._settings = settings
        self._session = session
        self._clock = clock
        self._utc = utc
        self._side_search = side_search or SideSearch(settings.site)
        self._heartbeat = Heartbeat(settings.state)
        self._look_seconds: float | None = None
        self._refused_topics: set[str] = set()
        self._faults = Faults()
        self._recorded_version: tuple[int, str] | None = None
        site = settings.site
        transport.subscribe([(topic.filter(site), topic.qos) for topic in TOPICS])

    def run(self, stop: Flag) -> None:
        """Serve until ``stop`` is set; then say farewell.

        Raises:
            RefusedError: The broker refused the credential.
        """
        try:
            while not stop.is_set():
                self.step(_TICK_SECONDS)
        finally:
            leads = self.control.authority.leads(self._clock())
            self._transport.close(farewell(self._settings, self._session) if leads else None)
            self._store.close()
            self._side_search.close()

    def step(self, timeout_seconds: float) -> None:
        """Take in all that arrived, waiting so long for the first, and act on the time."""
        self._take_in(timeout_seconds)
        now = self._clock()
        if self._transport.is_connected:
            self._heartbeat.beat(now)
        if self._look_seconds is None or now >= self._look_seconds or self.control.wants_look:
            self._look()
        self._publish(self.control.tick(self._clock(), self._utc()))
        if self.control.wants_look:
            # A search took its time: first comes what happened meanwhile, the lease included.
            self._take_in(0)
            self._look()
            self._publish(self.control.tick(self._clock(), self._utc()))
        self._publish(self._side_search.collect())
        self._record(self._clock())

    def _take_in(self, timeout_seconds: float) -> None:
        event = self._transport.receive(timeout_seconds)
        while event is not None:
            self._receive(event)
            event = self._transport.receive(0) if not self._transport.inbox.empty() else None

    def _look(self) -> None:
        """Renew the lease and read telemetry; the time is from before the store is asked."""
        now = self._clock()
        self._look_seconds = now + self._settings.look_seconds
        seen = self._store.look(self.control.knowledge.devices, now)
        self._publish(self.control.handle(seen, now))
        refused = Refusals(self.num_refused_messages, self._store.num_refused_fields)
        self.samples = tuple(samples(self.control, refused, self._transport.traffic, now))

    def _receive(self, event: object) -> None:
        now = self._clock()
        match event:
            case Received(topic, payload):
                self._take(topic, payload, now)
            case Connected():
                logger.info("connected to the broker")
                self._publish(self.control.handle(BusUp(), now))
            case Disconnected(reason=reason):
                logger.warning("lost the broker: %s", reason)
                self._publish(self.control.handle(BusDown(), now))
            case Refused(reason=reason):
                raise RefusedError(f"the broker refused the planner: {reason}")
            case _:
                pass

    def _take(self, topic: str, payload: bytes, now: float) -> None:
        try:
            event = event_of(topic, payload)
        except DecodeError as error:
            # The first of each topic is news; a device that goes on so does not fill the log.
            is_news = topic not in self._refused_topics
            self._refused_topics.add(topic)
            self._note_refused(topic, str(error), is_news=is_news)
            return
        if isinstance(event, TelemetrySeen):
            if event.refused:
                self._store.num_refused_fields += len(event.refused)
                news = self._faults.news(event.device, event.refused)
                self._note_refused(topic, complaint(news or event.refused), is_news=bool(news))
            self._store.put(event.device, event.telemetry, now)
        if isinstance(event, WhatIfSeen):
            self._suppose(event, now)
        elif event is not None:
            self._publish(self.control.handle(event, now))

    def _suppose(self, event: WhatIfSeen, now: float) -> None:
        """Begin to answer a gateway; that is the business of the planner with the lease alone."""
        if not self.control.authority.leads(now):
            return
        try:
            supposition = self.control.supposition(event.asked, now)
        except NoModelError as error:
            refused = unanswered(event.asked, Finding.REFUSED, str(error))
            self._publish([self._side_search.reply(event.gateway, refused)])
        else:
            self._publish(self._side_search.ask(event.gateway, supposition))

    def _note_refused(self, topic: str, what: str, *, is_news: bool) -> None:
        self.num_refused_messages += 1
        level = logging.WARNING if is_news else logging.DEBUG
        logger.log(level, "%s: %s (%d refused so far)", topic, what, self.num_refused_messages)

    def _publish(self, publications: list[Publication]) -> None:
        for publication in publications:
            self._transport.publish(publication)

    def _record(self, now: float) -> None:
        decisions, self.control.history.fresh = self.control.history.fresh, []
        for decision in decisions:
            logger.info("%s", decision.text)
        plan = self.control.rollout.latest
        mark = None if plan is None else (plan.version, plan.state.value)
        news = mark is not None and mark != self._recorded_version
        if news and plan is not None:
            logger.info("plan %d is %s", plan.version, plan.state)
            self._recorded_version = mark
        if self.control.authority.leads(now) and (news or decisions):
            self._store.record(plan if news else None, decisions, now)
