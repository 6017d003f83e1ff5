import asyncio
import logging
import queue
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from broker.codec import decode_control, encode_control, encode_frame
from broker.control import (
    Control,
    DeviceControl,
    DeviceState,
    DeviceStatus,
    GatewayStatus,
    ModelManifest,
    Placement,
)
from broker.memory import MemoryBroker, MemoryTransport
from broker.plan import PlannerStatus
from broker.topics import (
    ALL_TOPICS,
    DEVICE_CONTROL,
    DEVICE_STATUS,
    GATEWAY_EVENTS,
    GATEWAY_STATUS,
    MODEL,
    PLAN,
    PLANNER_STATUS,
    STAGE_WORK,
    QoS,
    Topic,
)
from broker.traffic import Traffic
from broker.transport import Publication, Received, Refused, TransportEvent
from broker.work import Open, Release
from gateway import lengths
from gateway.dispatch import DispatchSettings
from gateway.engine import FogEngine
from gateway.journal import RedisJournal
from gateway.measures import FEWEST_LENGTHS
from gateway.metrics import TABLE
from gateway.owners import UnknownDeviceError, placed, removed
from gateway.requests import (
    EngineError,
    GeneratedToken,
    Generation,
    NotReadyError,
    QueueFullError,
    TakenOverError,
    TooLargeError,
)
from gateway.status import status_publication
from gateway.tracing.tracer import Tracer
from tests.gateway.scripted_fog import ScriptedFog, expected_tokens, generation, plan, replica

SITE, ME = "lab", "gw"
MANIFEST = ModelManifest(name="owner/Tiny Model", revision="rev", config={}, tensors={})


class NodesInbox(queue.SimpleQueue[TransportEvent]):
    """Gives each message to the scripted fog as it is published, and sends the answers."""

    def __init__(self, fog: ScriptedFog) -> None:
        super().__init__()
        self.fog = fog
        self.transport: MemoryTransport | None = None
        self.num_steps = 100

    def put(self, item: TransportEvent, block: bool = True, timeout: float | None = None) -> None:
        if isinstance(item, Received):
            self.fog.take(Publication(item.topic, item.payload))
            for _ in range(self.num_steps):
                self.fog.step()
            self.send()

    def send(self) -> None:
        assert self.transport is not None
        out, self.fog.out = self.fog.out, []
        for gateway, sender, event in out:
            topic = GATEWAY_EVENTS.path(SITE, gateway=gateway, sender=sender)
            self.transport.publish(Publication(topic, encode_frame(event)))


class Site:
    """A memory broker with a scripted fog, a planner's retained state and one engine."""

    def __init__(
        self,
        settings: DispatchSettings | None = None,
        journal: Any = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.broker = MemoryBroker()
        self.fog = ScriptedFog(replica("r", ["a", "b"]))
        self.nodes = NodesInbox(self.fog)
        self.nodes.transport = MemoryTransport(self.broker, "nodes", inbox=self.nodes)
        self.nodes.transport.subscribe([(STAGE_WORK.filter(SITE), QoS.AT_MOST_ONCE)])
        self.nodes.transport.connect()
        self.planner = MemoryTransport(self.broker, "planner")
        self.planner.connect()
        lost = GatewayStatus(state=DeviceState.LOST, session=100)
        self.transport = MemoryTransport(self.broker, ME, will=status_publication(SITE, ME, lost))
        self.refused: list[str] = []
        self.engine = FogEngine(
            self.transport,
            SITE,
            ME,
            settings,
            journal=journal,
            addresses=["http://127.0.0.1:8080"],
            session=100,
            on_refused=self.refused.append,
            tracer=tracer,
        )

    def say(self, topic: Topic[Any], message: Control, **names: str) -> None:
        path = topic.path(SITE, **names)
        self.planner.publish(Publication(path, encode_control(message), topic.qos, retained=True))

    def say_all_is_well(self) -> None:
        self.say(PLAN, plan(*self.fog.replicas.values()))
        self.say(PLANNER_STATUS, PlannerStatus(state=DeviceState.READY, session=1))
        for device in ("a", "b"):
            self.say_status(device, DeviceState.READY)

    def say_status(self, device: str, state: DeviceState) -> None:
        self.say(DEVICE_STATUS, DeviceStatus(state=state, session=1), device=device)

    def own_status(self) -> GatewayStatus | None:
        payload = self.broker.retained.get(GATEWAY_STATUS.path(SITE, gateway=ME))
        return None if payload is None else decode_control(payload, GatewayStatus)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    async for started in run(site):
        yield started


async def run(site: Site) -> AsyncIterator[Site]:
    site.say_all_is_well()
    await site.engine.start()
    site.transport.connect()
    site.engine.publish_model(MANIFEST)
    await until(lambda: site.engine.readiness().ready)
    yield site
    await site.engine.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def answer(site: Site, request: Generation) -> list[int]:
    return [token.token_id async for token in site.engine.generate(request)]


async def test_an_answer_comes_token_by_token_with_its_reason_on_the_last(site: Site) -> None:
    tokens = [token async for token in site.engine.generate(generation("a"))]

    ids = expected_tokens()
    reasons = [None] * 7 + ["length"]
    assert tokens == [GeneratedToken(i, ids[i], reasons[i]) for i in range(8)]


async def test_many_requests_at_once_all_get_their_own_answer(site: Site) -> None:
    answers = await asyncio.gather(
        *(answer(site, generation(f"r{n}", prompt=n + 1)) for n in range(20))
    )

    assert answers == [expected_tokens(n + 1) for n in range(20)]


async def test_closing_the_iterator_frees_the_nodes(site: Site) -> None:
    site.nodes.num_steps = 2

    async with aclosing(site.engine.generate(generation("a", tokens=500))) as tokens:
        await anext(tokens)
        assert site.fog.running
    assert not site.fog.running

    released = [n["device"] for n, m in site.fog.received if isinstance(m, Release)]
    assert released == ["a"]


async def test_cancelling_the_reader_frees_the_nodes(site: Site) -> None:
    site.nodes.num_steps = 2
    reader = asyncio.create_task(answer(site, generation("a", tokens=500)))
    await until(lambda: bool(site.fog.running))

    reader.cancel()
    with suppress(asyncio.CancelledError):
        await reader

    assert not site.fog.running


async def test_an_answer_goes_on_after_a_device_was_lost_and_came_back(site: Site) -> None:
    site.nodes.num_steps = 1
    reader = asyncio.create_task(answer(site, generation("a", tokens=30)))
    await until(lambda: bool(site.fog.running))
    site.fog.forget("b")
    site.say_status("b", DeviceState.LOST)
    await until(lambda: not site.engine.readiness().ready)

    site.nodes.num_steps = 100
    site.say_status("b", DeviceState.READY)

    assert await reader == expected_tokens(tokens=30)


async def test_a_request_with_tokens_goes_on_behind_them(site: Site) -> None:
    ids = expected_tokens()

    request = replace(generation("a~1"), generated=tuple(ids[:3]), entry="a")
    tokens = [token async for token in site.engine.generate(request)]

    assert [(token.index, token.token_id) for token in tokens] == list(enumerate(ids))[3:]
    opens = [m for _, m in site.fog.received if isinstance(m, Open)]
    assert {m.num_generated_tokens for m in opens} == {3}


async def test_whoever_takes_an_answer_over_ends_its_earlier_stream(redis_url: str) -> None:
    site = Site(journal=RedisJournal(redis_url, SITE))
    async for _ in run(site):
        site.nodes.num_steps = 1
        reader = asyncio.create_task(answer(site, generation("a", tokens=30)))
        await until(lambda: bool(site.fog.running))

        assert await site.engine.take_over(["a"]) == 1

        with pytest.raises(TakenOverError):
            await reader
        written = await site.engine.written("a")
        assert written is not None
        site.nodes.num_steps = 100
        request = replace(generation("a~1", tokens=30), generated=written.tokens, entry="a")
        ids = expected_tokens(tokens=30)
        assert [*written.tokens, *await answer(site, request)] == ids
        whole = await site.engine.written("a")
        assert whole is not None
        assert (list(whole.tokens), whole.fields["status"]) == (ids, "finished")
        assert await site.engine.take_over(["a"]) == 2


async def test_a_request_that_cannot_fit_is_refused_before_it_waits(site: Site) -> None:
    assert site.engine.largest_request_tokens() == 2048

    with pytest.raises(TooLargeError) as raised:
        await answer(site, generation("a", prompt=2000, tokens=100))

    assert raised.value.largest_tokens == 2048


async def test_a_full_queue_is_said_at_once() -> None:
    site = Site(DispatchSettings(queue_limit=1))
    async for _ in run(site):
        site.fog.silent = {"a"}
        waiting = asyncio.create_task(answer(site, generation("a")))
        await until(lambda: site.engine.readiness().details["waiting"] == 1)

        with pytest.raises(QueueFullError):
            await answer(site, generation("b"))

        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_stop_ends_running_requests_and_says_lost() -> None:
    site = Site()
    errors: list[EngineError] = []
    async for _ in run(site):
        site.nodes.num_steps = 2

        async def read() -> None:
            try:
                await answer(site, generation("a", tokens=500))
            except EngineError as error:
                errors.append(error)

        reader = asyncio.create_task(read())
        await until(lambda: bool(site.fog.running))
    await reader

    assert isinstance(errors[0], NotReadyError)
    assert not site.fog.running
    status = site.own_status()
    assert status is not None
    assert status.state is DeviceState.LOST


# --- state on the bus ----------------------------------------------------------------------------


async def test_the_model_and_the_gateways_status_are_retained(site: Site) -> None:
    retained = site.broker.retained

    mine = msgspec.structs.replace(MANIFEST, gateway=ME)
    assert retained[MODEL.path(SITE, model="owner-Tiny-Model")] == encode_control(mine)
    status = site.own_status()
    assert status is not None
    assert (status.state, status.session) == (DeviceState.READY, 100)
    assert status.addresses == ["http://127.0.0.1:8080"]


async def test_a_model_that_this_gateway_served_before_its_restart_is_taken_back(
    site: Site,
) -> None:
    old, other = (
        msgspec.structs.replace(MANIFEST, name=name, gateway=gateway)
        for name, gateway in (("old", ME), ("other", "another-gateway"))
    )

    for manifest in (old, other):
        site.say(MODEL, manifest, model=manifest.name)

    await until(lambda: MODEL.path(SITE, model="old") not in site.broker.retained)
    assert MODEL.path(SITE, model="other") in site.broker.retained
    assert MODEL.path(SITE, model="owner-Tiny-Model") in site.broker.retained


async def test_the_status_says_which_models_that_are_not_in_use_still_answer(site: Site) -> None:
    def finishing() -> list[str] | None:
        status = site.own_status()
        return None if status is None else status.finishing

    site.nodes.num_steps = 1
    reader = asyncio.create_task(answer(site, generation("a", tokens=30)))
    await until(lambda: bool(site.fog.running))
    assert finishing() == []

    site.engine.publish_model(msgspec.structs.replace(MANIFEST, in_use=False))
    await until(lambda: finishing() == ["rev"])
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)

    await until(lambda: finishing() == [])


async def test_a_model_that_is_withdrawn_is_taken_back_and_one_that_is_awaited_stays(
    site: Site,
) -> None:
    awaited, other = (
        msgspec.structs.replace(MANIFEST, name=name, revision=name, gateway=ME)
        for name in ("awaited", "other")
    )
    site.engine.expect_models([MANIFEST.name, "awaited"])
    site.say(MODEL, awaited, model="awaited")
    site.engine.publish_model(other)
    await until(lambda: MODEL.path(SITE, model="other") in site.broker.retained)

    site.engine.withdraw_model(other)

    await until(lambda: MODEL.path(SITE, model="other") not in site.broker.retained)
    assert MODEL.path(SITE, model="awaited") in site.broker.retained
    assert MODEL.path(SITE, model="owner-Tiny-Model") in site.broker.retained


async def test_after_a_lost_connection_all_is_published_again(site: Site) -> None:
    site.transport.drop()
    await until(lambda: not site.engine.readiness().ready)
    assert "no connection to the MQTT broker" in site.engine.readiness().reason
    site.broker.deliver(Publication(MODEL.path(SITE, model="owner-Tiny-Model"), b"", retained=True))

    site.transport.connect()
    await until(lambda: site.engine.readiness().ready)

    await until(lambda: MODEL.path(SITE, model="owner-Tiny-Model") in site.broker.retained)
    await until(lambda: _state(site) is DeviceState.READY)


@pytest.mark.parametrize(
    "topic",
    [MODEL.path(SITE, model="owner-Tiny-Model"), GATEWAY_STATUS.path(SITE, gateway=ME)],
)
async def test_what_is_cleared_by_hand_is_published_again(site: Site, topic: str) -> None:
    before = site.broker.retained[topic]

    site.planner.publish(Publication(topic, b"", QoS.AT_LEAST_ONCE, retained=True))

    await until(lambda: site.broker.retained.get(topic) == before)


async def test_a_late_will_of_an_earlier_run_is_overwritten(site: Site) -> None:
    will = GatewayStatus(state=DeviceState.LOST, session=50)

    site.broker.deliver(status_publication(SITE, ME, will))

    await until(lambda: _state(site) is DeviceState.READY)


async def test_the_session_is_greater_than_any_that_is_retained() -> None:
    site = Site()
    earlier = GatewayStatus(state=DeviceState.LOST, session=5000)
    site.broker.deliver(status_publication(SITE, ME, earlier))

    async for _ in run(site):
        await until(lambda: _state(site) is DeviceState.READY)
        status = site.own_status()
        assert status is not None
        assert status.session == 5001


def _state(site: Site) -> DeviceState | None:
    status = site.own_status()
    return status.state if status is not None else None


async def test_refused_credentials_are_reported_to_the_process(site: Site) -> None:
    site.transport.inbox.put(Refused(ME, "bad user name or password"))

    await until(lambda: site.refused == ["bad user name or password"])

    assert "refused" in site.engine.readiness().reason


# --- bad input -----------------------------------------------------------------------------------

GARBAGE = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"null",
    b'{"state": "no such"}',
    b'{"session": "x"}',
    b"E2\x01\x00\xff\xff\xff\xff",
    b"E2\x09\x00\x00\x00\x00\x00",
    b"[" * 20_000,
]


@pytest.mark.parametrize("topic", ALL_TOPICS, ids=lambda topic: topic.template)
async def test_garbage_on_any_topic_is_counted_and_hurts_nobody(
    site: Site, topic: Topic[Any], caplog: pytest.LogCaptureFixture
) -> None:
    names = {
        key: "1" if key == "stage" else ME if key == "gateway" else "x"
        for key in ("model", "device", "gateway", "sender", "replica", "stage", "client", "request")
    }
    needed = {key: value for key, value in names.items() if f"{{{key}}}" in topic.template}
    before = sum(site.engine.dropped.values())
    # The nodes' own defence is tested there.
    site.nodes.transport.drop()  # type: ignore[union-attr]

    for payload in GARBAGE:
        site.planner.publish(Publication(topic.path(SITE, **needed), payload))
    site.nodes.transport.connect()  # type: ignore[union-attr]

    assert await answer(site, generation("a")) == expected_tokens()
    is_ours = topic.template.startswith(("devices", "plan", "models", "gateways"))
    is_ours = is_ours and not topic.template.endswith(("assignment", "tensors", "/what-if"))
    dropped = sum(site.engine.dropped.values()) - before
    if is_ours:
        assert dropped >= 6
        assert topic.path(SITE, **needed) in caplog.text
    else:
        assert dropped == 0


async def test_prompts_and_answers_are_not_logged(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    request = Generation(
        request_id="a",
        prompt_ids=(918273, 645),
        max_tokens=3,
        sampling=generation("a").sampling,
        body={"prompt": "zebra-marker"},
    )

    with caplog.at_level(logging.DEBUG):
        await answer(site, request)

    assert "zebra-marker" not in caplog.text
    assert "918273" not in caplog.text


# --- the journal ---------------------------------------------------------------------------------


class ListJournal:
    def __init__(self) -> None:
        self.is_available = True
        self.lines: list[tuple[str, ...]] = []

    def begin(self, generation: Generation, model: ModelManifest | None) -> None:
        self.lines.append(("begin", generation.request_id, model.revision if model else ""))

    def token(self, request_id: str, token: GeneratedToken) -> None:
        self.lines.append(("token", request_id, str(token.token_id)))

    def end(self, request_id: str, status: str) -> None:
        self.lines.append(("end", request_id, status))

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass


async def test_the_journal_hears_of_each_request_token_and_end() -> None:
    journal = ListJournal()
    site = Site(journal=journal)
    async for _ in run(site):
        await answer(site, generation("a", tokens=2))
        site.nodes.num_steps = 2
        async with aclosing(site.engine.generate(generation("b", tokens=500))) as tokens:
            await anext(tokens)
        assert site.engine.readiness().details["journal"] is True

    first, second = expected_tokens(tokens=2)
    assert journal.lines == [
        ("begin", "a", "rev"),
        ("token", "a", str(first)),
        ("token", "a", str(second)),
        ("end", "a", "finished"),
        ("begin", "b", "rev"),
        ("token", "b", str(first)),
        ("end", "b", "cancelled"),
    ]


# --- what the API shows --------------------------------------------------------------------------


async def test_plan_and_devices_show_predicted_and_measured(site: Site) -> None:
    await answer(site, generation("a"))

    body = site.engine.fog_plan()
    assert body["measured"]["ttft_seconds"] > 0
    assert [r["id"] for r in body["replicas"]] == ["r"]
    assert [d["id"] for d in site.engine.devices()] == ["a", "b"]
    newest = site.engine.active_plan()
    assert newest is not None
    assert newest.version == 1


async def test_readiness_says_what_happens_before_the_first_connection() -> None:
    site = Site()

    readiness = site.engine.readiness()

    assert not readiness.ready
    assert "not connected to the MQTT broker yet" in readiness.reason
    await site.engine.stop()


async def test_what_an_owner_asks_is_retained_for_the_planner_and_shown(site: Site) -> None:
    await answer(site, generation("a"))
    said = site.engine.ask_of_device("b", lambda known: placed(known, "drain", 5.0))
    await asyncio.sleep(0.05)

    assert said["placement"] == "draining"
    retained = site.broker.retained[DEVICE_CONTROL.path(SITE, device="b")]
    assert decode_control(retained, DeviceControl).placement is Placement.DRAINING
    assert [d["placement"] for d in site.engine.devices()] == ["open", "draining"]
    # What was asked before that changes nothing.
    site.engine.ask_of_device("b", lambda known: placed(known, "uncordon", 4.0))
    await asyncio.sleep(0.05)
    assert site.engine.devices()[1]["placement"] == "draining"
    with pytest.raises(UnknownDeviceError, match="toaster"):
        site.engine.ask_of_device("toaster", lambda known: known)


async def test_a_device_that_was_removed_is_shown_until_the_planner_has_forgotten_it(
    site: Site,
) -> None:
    await answer(site, generation("a"))
    site.say_status("b", DeviceState.LOST)
    site.engine.ask_of_device("b", lambda known: removed(known, 5.0))
    await asyncio.sleep(0.05)
    assert [d["placement"] for d in site.engine.devices()] == ["open", "removed"]

    status = DEVICE_STATUS.path(SITE, device="b")
    site.planner.publish(Publication(status, b"", DEVICE_STATUS.qos, retained=True))
    await asyncio.sleep(0.05)
    assert [d["id"] for d in site.engine.devices()] == ["a"]
    site.engine.ask_of_device("b", lambda _: None)
    await asyncio.sleep(0.05)

    assert DEVICE_CONTROL.path(SITE, device="b") not in site.broker.retained
    with pytest.raises(UnknownDeviceError):
        site.engine.ask_of_device("b", lambda known: known)


async def test_lengths_of_requests_are_told_in_the_status(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths, "INTERVAL_SECONDS", 0.0)
    for number in range(FEWEST_LENGTHS + 1):
        await answer(site, generation(f"r{number}", prompt=5, tokens=4))
    said = None
    async with asyncio.timeout(5):
        while said is None:
            await asyncio.sleep(0.01)
            retained = site.broker.retained[GATEWAY_STATUS.path(SITE, gateway=ME)]
            said = decode_control(retained, GatewayStatus).lengths
    assert (said.prompt_tokens, said.answer_tokens) == (5.0, 4.0)


async def test_the_engine_says_everything_that_the_table_of_metrics_has(site: Site) -> None:
    await answer(site, generation("a"))

    said = {sample.metric for sample in site.engine.samples(Traffic())}

    # Told where there is some: telemetry, a plan that is loading, messages that were dropped.
    assert {metric.name for metric in set(TABLE) - said} == {
        "e2llm_kv_cache_usage_perc",
        "e2llm_plan_loaded_ratio",
        "e2llm_dropped_messages_total",
    }
