"""The bus side of the gateway: an asyncio shell around `gateway.dispatch.Dispatcher`.

A thread takes messages from the transport and hands them to the event loop; everything else
happens there. Decisions are the dispatcher's, knowledge of the fog is `FogView`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence, Set
from typing import Any, Final

import msgspec

from broker.control import DeviceControl, DeviceState, GatewayStatus, ModelManifest
from broker.identity import ModelIdentity, identity
from broker.metrics import Sample
from broker.plan import Plan
from broker.traffic import Traffic
from broker.transport import (
    Connected,
    Disconnected,
    Publication,
    Received,
    Refused,
    Transport,
    TransportClosedError,
    TransportEvent,
)
from broker.whatif import WhatIf, WhatIfAnswer
from gateway import metrics, report
from gateway.choice import in_order
from gateway.course import Stretch
from gateway.desks import Desks
from gateway.dispatch import Actions, DispatchSettings, FailedOutcome
from gateway.fogview import FogView
from gateway.intake import TOPICS, Intake, Reported
from gateway.journal import Journal, NoJournal
from gateway.lengths import LengthsNews
from gateway.owners import UnknownDeviceError, control_body, control_publication
from gateway.questions import Questions
from gateway.receiver import Receiver
from gateway.requests import (
    EngineError,
    GeneratedToken,
    Generation,
    NotReadyError,
    Readiness,
    TakenOverError,
    Written,
)
from gateway.status import OwnState, new_session, topic_level
from gateway.tracing.tracer import Tracer

logger = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.05
TAKE_OVER_SECONDS: Final = 2.0
"""How long a stream may take to end whose answer another connection reads on."""


class Stream(asyncio.Queue[GeneratedToken | EngineError]):
    """What one request brings; ``closed`` is set when nobody reads it any more."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = asyncio.Event()


class FogEngine:
    """The fog as the HTTP side sees it (`gateway.requests.Engine`).

    Args:
        transport: Whoever made it connects it, after `start`. Its last will should be
            ``status_publication(site, gateway_id, GatewayStatus(state=LOST, session=...))``.
        settings: Of the dispatcher.
        journal: Where requests are written down; by default nowhere.
        addresses: Base URLs of this gateway, for its status.
        session: The one in the last will; by default that of a start now.
        on_refused: Called with the reason when the broker refuses the credentials; the
            transport has given up then, so the process should end.
        tracer: Exports the traces of requests that have some.
        clock: Steady seconds.
    """

    def __init__(
        self,
        transport: Transport,
        site: str,
        gateway_id: str,
        settings: DispatchSettings | None = None,
        *,
        journal: Journal | None = None,
        addresses: Sequence[str] = (),
        software: str = "",
        session: int | None = None,
        on_refused: Callable[[str], None] | None = None,
        tracer: Tracer | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._site = site
        self._gateway = gateway_id
        self._journal: Journal = journal or NoJournal()
        self._on_refused = on_refused
        self._tracer = tracer
        self._clock = clock
        self._desks = Desks(site, gateway_id, settings)
        self._intake = Intake(gateway_id)
        self._bus_problem: str | None = "not connected to the MQTT broker yet"
        self._lengths = LengthsNews()
        self._own = OwnState(
            site, gateway_id, session or new_session(), self._lengths, addresses, software
        )
        self._questions = Questions(site, gateway_id, self._publish)
        self._streams: dict[str, Stream] = {}
        self._writers: dict[str, str] = {}
        """The request whose tokens go into an entry of the journal."""
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._receiver = Receiver(transport, self._on_event, "gateway-receive")

    # --- life --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Subscribe, begin to take in messages, and begin to write the journal."""
        site, me = self._site, self._gateway
        self._transport.subscribe([(topic.filter(site, gateway=me), topic.qos) for topic in TOPICS])
        await self._journal.start()
        self._receiver.start()
        self._tasks.append(asyncio.create_task(self._tick(), name="gateway-timers"))

    async def stop(self) -> None:
        """Cancel what runs, say `lost`, close the transport and the journal."""
        for request_id in list(self._streams):
            self._apply(self._desks.cancel(request_id, self._clock()))
            self._tell(request_id, NotReadyError("the gateway is stopping"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._receiver.stop(self._own.status(DeviceState.LOST))
        await self._journal.stop()

    # --- the engine of the API ---------------------------------------------------------------

    async def generate(self, generation: Generation) -> AsyncGenerator[GeneratedToken, None]:
        request_id, entry = generation.request_id, generation.journal_id
        actions = self._desks.submit(generation, self._clock())
        stream = self._streams[request_id] = Stream()
        self._writers[entry] = request_id
        status = "cancelled"
        try:
            self._journal.begin(generation, self._manifest_of(generation))
            self._apply(actions)
            self._wake.set()
            while True:
                item = await stream.get()
                if isinstance(item, EngineError):
                    status = "failed"
                    raise item
                if self._writers.get(entry) == request_id:
                    self._journal.token(entry, item)
                if item.finish_reason is not None:
                    status = "finished"
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            del self._streams[request_id]
            # Not when another stream has taken over while this one's client took nothing.
            if self._writers.get(entry) == request_id:
                del self._writers[entry]
                self._journal.end(entry, status)
            self._apply(self._desks.cancel(request_id, self._clock()))
            stream.closed.set()

    async def written(self, entry: str) -> Written | None:
        return await self._journal.read(entry)

    async def take_over(self, entries: Sequence[str]) -> int:
        number = await self._journal.count_stream(entries[0])
        writers = [self._writers[entry] for entry in entries if entry in self._writers]
        closing = [self._streams[request_id].closed.wait() for request_id in writers]
        for request_id in writers:
            self._tell(request_id, TakenOverError("another connection reads the answer"))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*closing), TAKE_OVER_SECONDS)
        return number

    def largest_request_tokens(self, model: ModelIdentity | None = None) -> int | None:
        return self._desks.of(model).largest_request_tokens()

    def arithmetics(self, model: ModelIdentity | None = None) -> tuple[str, ...]:
        return self._desks.of(model).arithmetics

    def active_plan(self) -> Plan | None:
        return self.view.active

    def num_unfinished(self, manifest: ModelManifest) -> int:
        return self._desks.num_unfinished(manifest)

    def model_state(self, manifest: ModelManifest) -> dict[str, Any]:
        return report.model_state(self.view, manifest, self._desks.num_unfinished(manifest))

    def fog_plan(self) -> dict[str, Any]:
        is_full = self._desks.num_waiting > 0
        measures = self._desks.of(None).measures
        measured = measures.body(self.view.replicas, self._clock(), is_full=is_full)
        return report.plan_body(self.view, measured)

    def plan_history(self) -> list[dict[str, Any]]:
        decisions: list[dict[str, Any]] = msgspec.to_builtins(self._intake.history.decisions)
        return decisions

    def courses(self) -> dict[str, tuple[Stretch, ...]]:
        return self._desks.courses(self._clock())

    def devices(self) -> list[dict[str, Any]]:
        return report.devices_body(self.view, self._clock())

    def ask_of_device(
        self, device: str, change: Callable[[DeviceControl], DeviceControl | None]
    ) -> dict[str, Any]:
        if device not in self.view.devices:
            raise UnknownDeviceError(f"no device {device} is known")
        self._require_bus()
        control = change(self.view.devices[device].control)
        self._publish(control_publication(self._site, device, control))
        return control_body(device, control)

    def utc_offset_of(self, device: str) -> int:
        return self.view.utc_offset_of(device)

    async def what_if(self, asked: WhatIf) -> WhatIfAnswer:
        self._require_bus()
        return await self._questions.ask(asked, self.view.planner)

    def readiness(self) -> Readiness:
        details = {
            "journal": self._journal.is_available,
            "waiting": self._desks.num_waiting,
            "running": self._desks.num_running,
            "dropped": self.dropped,
        }
        return report.readiness(self.view, self._bus_problem, details)

    def expect_models(self, names: Iterable[str]) -> None:
        self._own.expected = frozenset(map(topic_level, names))

    def samples(self, others: Traffic) -> Iterator[Sample]:
        traffic, is_up = self._transport.traffic + others, self._transport.is_connected
        totals, state = self._desks.totals, self.readiness()
        return metrics.samples(totals, self.view, state, traffic, is_connected=is_up)

    def publish_model(self, manifest: ModelManifest) -> None:
        own = self._own.serve(manifest)
        self._intake.serve(own)
        self._desks.open(own)
        self._models_changed({topic_level(own.name)})

    def withdraw_model(self, manifest: ModelManifest) -> None:
        self._own.withdraw(manifest)
        self._desks.close(manifest)
        self._intake.own_models.add(topic_level(manifest.name))
        self._models_changed(frozenset())

    @property
    def dropped(self) -> dict[str, int]:
        """How many messages were ignored, by topic for those that could not be read."""
        return dict(self._intake.drops.counts + self._desks.dropped)

    # --- the bus -----------------------------------------------------------------------------

    def _require_bus(self) -> None:
        if not self._transport.is_connected:
            raise NotReadyError(self._bus_problem or "not connected to the MQTT broker")

    @property
    def view(self) -> FogView:
        """What is known of the fog."""
        return self._intake.view

    def _on_event(self, event: TransportEvent) -> None:
        match event:
            case Received():
                self._on_message(event)
            case Connected():
                self._bus_problem = None
                self._publish_status()
                self._publish_manifests()
            case Disconnected():
                self._bus_problem = f"no connection to the MQTT broker: {event.reason}"
                logger.warning("lost the broker: %s", event.reason)
            case Refused():
                self._bus_problem = f"the MQTT broker refused this gateway: {event.reason}"
                logger.error("%s", self._bus_problem)
                if self._on_refused is not None:
                    self._on_refused(event.reason)

    def _on_message(self, message: Received) -> None:
        now = self._clock()
        if not message.payload and message.topic in self._own.topics:
            # Cleared by hand: a node or planner that starts now would know nothing.
            self._publish_status()
            self._publish_manifests()
            return
        taken = self._intake.take(message, now)
        if self._own.gone(self._intake.own_models):
            self._publish_manifests()
        if taken is None:
            return
        if isinstance(taken, GatewayStatus):
            if not self._receiver.is_stopping and self._own.meet(taken):
                self._publish_status()
        elif isinstance(taken, FogView):
            self._fog_changed()
        elif isinstance(taken, Reported):
            self._desks.reported(taken.device, now)
        elif isinstance(taken, WhatIfAnswer):
            self._questions.take(taken)
        else:
            sender, event = taken
            self._apply(self._desks.handle(sender, event, now))

    def _models_changed(self, levels: Set[str]) -> None:
        self._fog_changed()
        if self._transport.is_connected:
            self._publish_manifests(levels)

    def _fog_changed(self) -> None:
        models = in_order(self._own.manifests.values(), self.view.active)
        if models:
            self._intake.view = self.view.with_model(models[0])
        self._apply(self._desks.fog_changed(self.view, self._clock()))

    def _manifest_of(self, generation: Generation) -> ModelManifest | None:
        own = {identity(manifest): manifest for manifest in self._own.manifests.values()}
        return self.view.model if generation.model is None else own.get(generation.model)

    def _publish_status(self) -> None:
        self._publish(self._own.status())

    def _publish_manifests(self, levels: Set[str] | None = None) -> None:
        for publication in self._own.models(self._intake.own_models, levels):
            self._publish(publication)
        self._intake.own_models -= self._own.gone(self._intake.own_models)

    def _tell_finishing(self) -> None:
        """Let the planner know which models that are not in use still answer requests."""
        if self._own.has_news(self._desks.num_unfinished) and self._transport.is_connected:
            self._publish_status()

    def _publish(self, publication: Publication) -> None:
        try:
            self._transport.publish(publication)
        except (ValueError, TransportClosedError) as error:
            # Too large for the broker, or too late; repeats and timeouts end the request.
            logger.error("could not publish: %s", error)

    # --- actions and timers ------------------------------------------------------------------

    def _apply(self, actions: Actions) -> None:
        for publication in actions.publications:
            self._publish(publication)
        for outcome in actions.outcomes:
            if isinstance(outcome, FailedOutcome):
                said = {"request_id": outcome.request_id}
                logger.info("request %s failed: %s", said["request_id"], outcome.error, extra=said)
                self._tell(outcome.request_id, outcome.error)
            else:
                self._tell(outcome.request_id, outcome.token)
        for timeline in actions.traces:
            if self._tracer is not None:
                self._tracer.end(timeline)
        self._tell_finishing()

    def _tell(self, request_id: str, item: GeneratedToken | EngineError) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.put_nowait(item)

    async def _tick(self) -> None:
        while True:
            if self._desks.is_idle:
                self._wake.clear()
                await self._wake.wait()
            await asyncio.sleep(TICK_SECONDS)
            try:
                self._apply(self._desks.tick(self._clock()))
                asked, measures = self._desks.asked, self._desks.of(None).measures
                has_news = self._lengths.look(measures, asked, self._clock())
                if has_news and self._transport.is_connected:
                    self._publish_status()
            except Exception:
                # A bug: without timers every request of this gateway would hang.
                logger.exception("a timer failed")
