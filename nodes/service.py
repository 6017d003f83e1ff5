"""The node's loop: messages first, then one computation, then what is to be sent.

One thread. It decides nothing about requests (`nodes.device`), assignments
(`nodes.holdings`) or sessions (`nodes.presence`); loading and measuring run beside it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from broker.codec import DecodeError, decode_control, decode_frame
from broker.heartbeat import Heartbeat
from broker.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_STATUS,
    DEVICE_TENSORS,
    GATEWAY_STATUS,
    MODEL,
    PLAN,
    STAGE_CREDIT,
    STAGE_KV,
    STAGE_WORK,
    Topic,
)
from broker.transport import (
    Connected,
    Disconnected,
    Publication,
    Received,
    Refused,
    TransportClosedError,
    TransportEvent,
)
from nodes.canary import canary_seconds
from nodes.complaints import Complaints
from nodes.compute import JobCost
from nodes.connections import Connections
from nodes.context import StageSettings, UnexpectedMessageError
from nodes.device import DeviceCore
from nodes.emulation import Pacer, usual
from nodes.gateways import GatewayWatch
from nodes.holdings import Holdings
from nodes.link import FALLBACK, LinkProbe, LinkWatch, kv_chunk_bytes
from nodes.loader import Loader
from nodes.outbound import Outbound
from nodes.presence import Presence, Reaction
from nodes.profiler import Profiler
from nodes.reports import Reports, Vitals
from nodes.speed import SpeedGauge
from nodes.steps import Run, RunLog

logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.02
_INBOX_BATCH: Final = 256
# After SUBACK the broker sends retained messages at once; longer means that there is none.
_RETAINED_SECONDS: Final = 0.2
_WINDOW_CHUNKS: Final = 8
_PROBE_REPLICA: Final = "link-probe"
_DATA_TOPICS: Final = (STAGE_WORK, STAGE_KV, STAGE_CREDIT)


class RefusedError(Exception):
    """The broker refused the device's credential; the process cannot go on."""


class NodeService:
    """One device on the bus.

    Args:
        connections: Opened by the caller, before or after.
        presence: Holds the session with which they were opened.
        profiler: Measures the device.
        loader: Started by the caller.
        slowdown, hardship, is_emulated: See `Pacer`.
        stages: What all stages of the device share.
        heartbeat: Tells a health check that the device is on the bus.
        stop: Ends the loop, also out of an emulated wait.
        canary: Computes a little, and returns the seconds of a core that it took.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        connections: Connections,
        presence: Presence,
        profiler: Profiler,
        loader: Loader,
        *,
        slowdown: float = 1.0,
        is_emulated: bool = True,
        hardship: Callable[[], float] = usual,
        telemetry_seconds: float = 2.0,
        stages: StageSettings | None = None,
        heartbeat: Heartbeat | None = None,
        stop: threading.Event | None = None,
        canary: Callable[[], float] = canary_seconds,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connections = connections
        self._presence = presence
        self._profiler = profiler
        self._loader = loader
        self._clock = clock
        self._heartbeat = heartbeat or Heartbeat(None)
        self._stop = stop or threading.Event()
        self._pacer = Pacer(
            slowdown, self._stop.wait, clock, hardship=hardship, is_emulated=is_emulated
        )
        self._runs = RunLog()
        self._gauge = SpeedGauge()
        self._canary = canary
        self._complaints = Complaints(logger)
        self.core = DeviceCore(connections.device, stages or StageSettings(), self._pace)
        self.holdings = Holdings(self.core, loader.want, lambda: presence.session, loader.grammars)
        self.reports = Reports(
            connections,
            presence,
            profiler,
            self.holdings,
            self.core,
            telemetry_seconds=telemetry_seconds,
            exchange=loader.exchange,
        )
        self._gateways = GatewayWatch(self.core.settings.timers.gateway_loss)
        self._outbound = Outbound(connections.site, connections.device)
        self._probe = LinkProbe()
        self._watch: LinkWatch | None = None
        self._num_jobs = 0
        self._plan_version = 0
        self._connected: set[str] = set()
        self._may_announce_at: float | None = None
        self._next_tick = 0.0
        self._is_busy = False
        self._routes: tuple[tuple[Topic[Any], Callable[..., None]], ...] = (
            (PLAN, self._on_plan),
            (MODEL, self._on_model),
            (DEVICE_ASSIGNMENT, self._on_assignment),
            (DEVICE_STATUS, self._on_status),
            (GATEWAY_STATUS, self._on_gateway),
            (DEVICE_TENSORS, self._on_offer),
        )

    def run(self) -> None:
        """Serve until told to stop.

        Raises:
            RefusedError: The broker refused the credential.
        """
        while not self._stop.is_set():
            try:
                self.run_once()
            except TransportClosedError:
                return  # The goodbye was said from another thread.

    def run_once(self, wait_seconds: float = TICK_SECONDS) -> None:
        """Take messages, run timers, and compute at most one job; wait when there is none."""
        self._take_messages(0.0 if self._is_busy else wait_seconds)
        now = self._clock()
        self._take_background(now)
        if now >= self._next_tick:
            self._next_tick = now + TICK_SECONDS
            self._tick(now)
        self._send(now)
        self._is_busy = self._compute()
        self._send(self._clock())

    # --- messages --------------------------------------------------------------------------

    def _take_messages(self, wait_seconds: float) -> None:
        inbox = self._connections.inbox
        try:
            self._take_event(inbox.get(timeout=wait_seconds))
            for _ in range(_INBOX_BATCH):
                self._take_event(inbox.get_nowait())
        except queue.Empty:
            pass

    def _take_event(self, event: TransportEvent) -> None:
        match event:
            case Received():
                self._take_message(event)
            case Connected(client_id):
                self._connected.add(client_id)
                if client_id == self._connections.work_client:
                    self._on_connected()
            case Disconnected(client_id, reason):
                self._connected.discard(client_id)
                if not self._stop.is_set():
                    logger.info("%s is not connected: %s", client_id, reason)
            case Refused(client_id, reason):
                raise RefusedError(f"the broker refused {client_id}: {reason}")

    def _take_message(self, message: Received) -> None:
        now = self._clock()
        for topic in _DATA_TOPICS:
            names = topic.match(message.topic)
            if names is not None:
                self._take_data(topic, names, message, now)
                return
        for topic, handle in self._routes:
            names = topic.match(message.topic)
            if names is None:
                continue
            if not message.payload:
                # Cleared, which matters where it makes others forget that we are here.
                if topic is DEVICE_STATUS:
                    self.reports.contradict()
                elif topic is DEVICE_TENSORS:
                    self._on_offer(None, names, now)
                elif topic is MODEL and self._profiler.forget(names["model"]):
                    self.reports.publish_profile()
                return
            try:
                handle(decode_control(message.payload, topic.message), names, now)
            except DecodeError as error:
                self._complaints.drop(topic.template, message.topic, str(error), now)
            return

    def _take_data(
        self, topic: Topic[Any], names: dict[str, str], message: Received, now: float
    ) -> None:
        if names["replica"] == _PROBE_REPLICA:
            if self._watch is not None:
                self._watch.take_echo(message.payload, now, self._num_jobs)
                return
            self._probe.take_echo(message.payload, now)
            self._send_probe(now)
            return
        try:
            if message.retained:
                raise DecodeError("data must not be retained")
            header, tensor = decode_frame(message.payload, topic.message)
            stage = names["replica"], int(names["stage"])
            self.core.handle(names["sender"], stage, header, tensor, now)
        except (DecodeError, UnexpectedMessageError, ValueError) as error:
            self._complaints.drop(topic.template, message.topic, str(error), now)
        except Exception as error:
            # A peer must not be able to stop a node, not even through an error of ours.
            reason = f"{type(error).__name__} while handling it"
            logger.debug("handling a message failed", exc_info=True)
            self._complaints.drop(topic.template, message.topic, reason, now)

    def _on_connected(self) -> None:
        now = self._clock()
        if self._presence.is_announced:
            self.reports.announce(now)
        else:
            self._may_announce_at = now + _RETAINED_SECONDS

    def _on_status(self, status: Any, names: dict[str, str], now: float) -> None:
        match self._presence.see(status):
            case Reaction.RESTART:
                logger.warning(
                    "a later session of %s is known; is its clock wrong, or does another "
                    "process use this id? Connecting again as session %d",
                    names["device"],
                    self._presence.session,
                )
                self._connected.discard(self._connections.work_client)
                self._may_announce_at = None
                self._connections.reopen(self._presence.session)
            case Reaction.ANNOUNCE if self._presence.is_announced:
                self.reports.contradict()
            case Reaction.ANNOUNCE:
                self._may_announce_at = now

    def _on_model(self, manifest: Any, names: dict[str, str], now: float) -> None:
        self._loader.exchange.learn_manifest(manifest)
        self.holdings.learn_manifest(manifest, now)
        if self._profiler.take_manifest(manifest, names["model"]):
            self.holdings.measuring()

    def _on_assignment(self, assignment: Any, names: dict[str, str], now: float) -> None:
        self.holdings.assign(assignment, now)

    def _on_plan(self, plan: Any, names: dict[str, str], now: float) -> None:
        if plan.version >= self._plan_version:
            self._plan_version = plan.version
            self.core.learn(plan)
            self.holdings.plan_changed()

    def _on_gateway(self, status: Any, names: dict[str, str], now: float) -> None:
        self._gateways.see(names["gateway"], status, now)

    def _on_offer(self, offer: Any, names: dict[str, str], now: float) -> None:
        self._loader.exchange.neighbours.hear(names["device"], offer)

    # --- what runs beside ------------------------------------------------------------------

    def _take_background(self, now: float) -> None:
        while not self._loader.events.empty():
            self.holdings.take(self._loader.events.get(), now)
        if self._profiler.poll():
            self.holdings.measured(self._profiler.error)
            self.reports.publish_profile()

    def _send_probe(self, now: float) -> None:
        if self._watch is None:
            payload = self._probe.next_payload(now)
        else:
            payload = None if self._is_busy else self._watch.next_payload(now, self._num_jobs)
        if payload is not None:
            device = self.core.device
            path = STAGE_CREDIT.path(
                self._connections.site,
                replica=_PROBE_REPLICA,
                stage=0,
                device=device,
                sender=device,
            )
            self._connections.publish(Publication(path, payload, STAGE_CREDIT.qos))
        elif self._watch is None and self._probe.is_done:
            link = self._probe.link()
            if link is None:
                logger.warning("no message to myself came back; assuming %s", FALLBACK)
            self._profiler.take_link(link or FALLBACK)
            self._watch = LinkWatch(link or FALLBACK)
            chunk = kv_chunk_bytes(link or FALLBACK)
            self.core.settings = replace(
                self.core.settings, kv_chunk_bytes=chunk, kv_window_bytes=_WINDOW_CHUNKS * chunk
            )

    # --- computing -------------------------------------------------------------------------

    def _compute(self) -> bool:
        self._pacer.begin()
        try:
            did_run = self.core.run_next(self._clock)
            self._num_jobs += did_run
            return did_run
        except Exception:
            # The job is gone from the queue; its request times out at its master.
            logger.exception("a job failed")
            self._complaints.num_dropped += 1
            return True

    def _pace(self, cost: JobCost) -> None:
        """Called by the stage that runs, after its computation."""
        key = self.core.running
        assert key is not None, "only a running stage paces"
        calibrated = self._profiler.calibrated_seconds(self.holdings.weights_of(key), cost)
        took = self._pacer.finish(calibrated, self._profiler.core_share)
        predicted = None if calibrated is None else calibrated * self._pacer.slowdown
        share = 1.0 if cost.is_decode else len(cost.kinds) / self.core.num_layers(key)
        self._runs.add(
            Run(
                at=self._clock(),
                replica=key[0],
                is_decode=cost.is_decode,
                rows=cost.rows * share,
                seconds=took.seconds,
                active_seconds=took.active_seconds,
                predicted_seconds=predicted,
            )
        )

    # --- time ------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        self.core.tick(now)
        self.holdings.tick(now)
        for gateway in self._gateways.take_lost(now):
            logger.info("gateway %s is lost; freeing what it holds", gateway)
            self.core.gateway_lost(gateway, now)
        if not self._presence.is_announced:
            both = {self._connections.work_client, self._connections.kv_client}
            due = self._may_announce_at
            if due is not None and now >= due and both <= self._connected:
                self.reports.announce(now)
            return
        if self._connections.work_client in self._connected:
            self._heartbeat.beat(now)
        self._send_probe(now)
        self._runs.forget_old(now)
        self._gauge.computed(self._runs.speed_ratio(), now)
        if not self._is_busy and self._gauge.wants_canary(now):
            self._gauge.take_canary(self._pacer.canary(self._canary), now)
        link = self._watch.link() if self._watch is not None else None
        self.reports.tick(now, Vitals(self._pacer, self._runs, self._gauge, link, self._complaints))

    # --- sending ---------------------------------------------------------------------------

    def _send(self, now: float) -> None:
        for message in self.core.drain(now):
            channel, publication = self._outbound.publication(message)
            try:
                self._connections.publish(publication, channel)
            except ValueError as error:
                # Too large: the request ends by its timers, and the log says what to change.
                self._complaints.drop(channel.value, publication.topic, str(error), now)
