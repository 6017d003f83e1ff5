"""Which requests get a trace, whose it is part of, and who may tell of it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec
import pytest

from broker.events import Spell, StageTimes
from broker.plan import Role
from gateway.requests import Generation
from gateway.tracing.pending import PendingTraces
from gateway.tracing.spans import phases_of
from gateway.tracing.timeline import REPORT_SECONDS, Timeline
from gateway.tracing.tracer import Asked, Tracer, open_tracer
from tests.gateway.scripted_fog import generation
from tests.gateway.test_engine import Site as EngineSite
from tests.gateway.test_engine import answer, run, until
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import Api, settings_for
from tests.support.pipeline import make_replica
from tests.support.prompts_site import CHAT, Site

CALLER: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OWN: Final = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"
REPLICA: Final = make_replica((2, 5), ("a", "b"), Role.BOTH)


@dataclass
class RecordingTracer:
    """Traces everything."""

    asked: list[Asked] = field(default_factory=list)
    ended: list[Timeline] = field(default_factory=list)

    def begin(self, generation: Generation, asked: Asked) -> Timeline | None:
        self.asked.append(asked)
        return Timeline(OWN, asked.began_at)

    def end(self, timeline: Timeline) -> None:
        self.ended.append(timeline)

    def stop(self) -> None:
        pass


@pytest.fixture
def tracer() -> RecordingTracer:
    return RecordingTracer()


@pytest.fixture
def api(engine: FakeEngine, folder: Path, tmp_path: Path, tracer: RecordingTracer) -> Api:
    return Api(engine, settings_for(folder, tmp_path), tracer=tracer)


# --- whose trace -----------------------------------------------------------------------------


async def test_headers_of_a_request_say_whose_trace_it_is_part_of(
    api: Api, tracer: RecordingTracer
) -> None:
    headers = {"traceparent": CALLER, "tracestate": "shop=7"}
    async with api.client() as client:
        answer = await client.post("/v1/chat/completions", json=CHAT, headers=headers)

    assert answer.status_code == 200
    (asked,) = tracer.asked
    assert asked.carrier == headers
    assert (asked.operation, asked.model) == ("chat", "tiny")
    (generation,) = api.engine.submitted
    assert generation.timeline is not None
    assert generation.timeline.traceparent == OWN


@pytest.mark.parametrize(
    ("path", "body", "operation"),
    [
        ("/v1/completions", {"prompt": "a"}, "text_completion"),
        ("/v1/responses", {"input": "a"}, "chat"),
        ("/api/chat", {"model": "tiny", **CHAT}, "chat"),
    ],
)
async def test_every_door_has_the_conventions_name_for_what_it_does(
    api: Api, tracer: RecordingTracer, path: str, body: Mapping[str, object], operation: str
) -> None:
    assert (await api.post(path, body)).status_code == 200
    assert [asked.operation for asked in tracer.asked] == [operation]
    assert tracer.asked[0].carrier == {}


async def test_each_choice_is_a_request_of_its_own(api: Api, tracer: RecordingTracer) -> None:
    await api.post("/v1/chat/completions", {**CHAT, "n": 3})

    assert len(tracer.asked) == 3
    assert len({id(each.timeline) for each in api.engine.submitted}) == 3


async def test_a_prompt_over_mqtt_has_its_trace_as_a_property_or_in_its_json(
    site: Site, tracer: RecordingTracer
) -> None:
    site.ask(CHAT, traceparent=CALLER)
    await site.reply()
    site.ask({**CHAT, "traceparent": CALLER})
    await site.reply()
    site.ask({**CHAT, "traceparent": 7})
    await site.reply()

    own = {"traceparent": CALLER}
    assert [asked.carrier for asked in tracer.asked] == [own, own, {}]


async def test_without_a_tracer_no_request_has_a_trace(
    engine: FakeEngine, folder: Path, tmp_path: Path
) -> None:
    api = Api(engine, settings_for(folder, tmp_path))
    async with api.client() as client:
        await client.post("/v1/chat/completions", json=CHAT, headers={"traceparent": CALLER})

    assert [generation.timeline for generation in engine.submitted] == [None]


# --- from the bus to the tracer --------------------------------------------------------------


async def test_the_engine_hands_a_trace_over_when_all_its_stages_have_told(
    tracer: RecordingTracer,
) -> None:
    async for site in run(EngineSite(tracer=tracer)):
        timeline = Timeline(OWN, 0.0)
        await answer(site, replace(generation("a"), timeline=timeline))
        await answer(site, generation("b"))
        await until(lambda: tracer.ended != [])

        assert tracer.ended == [timeline]
        assert timeline.state == "finished"
        (attempt,) = timeline.attempts
        assert attempt.told.keys() == {("r", 0), ("r", 1)}
        assert site.engine.dropped.get("times of no traced attempt") is None


# --- who may tell ----------------------------------------------------------------------------


def times(stage: int, attempt: int = 1) -> StageTimes:
    return StageTimes(request_id="q", attempt=attempt, replica=REPLICA.id, stage=stage)


def running() -> Timeline:
    timeline = Timeline(OWN, 1.0)
    timeline.submitted(1.5)
    timeline.opened(1, REPLICA, REPLICA, 0, 2.0)
    timeline.token(None, 3.0)
    return timeline


def test_a_trace_is_due_when_all_stages_have_told_and_not_before_its_end() -> None:
    traces, timeline = PendingTraces(), running()
    traces.add("q", timeline)
    assert traces.tell("a", times(0))
    assert traces.tell("b", times(1))
    assert traces.take_due(1e9) == []

    timeline.ended("finished", 4.0)
    assert traces.take_due(4.0) == [timeline]
    assert traces.is_empty


def test_a_trace_does_not_wait_for_ever() -> None:
    traces, timeline = PendingTraces(), running()
    traces.add("q", timeline)
    timeline.ended("finished", 4.0)
    traces.tell("a", times(0))

    assert traces.take_due(4.0 + REPORT_SECONDS - 0.01) == []
    assert traces.take_due(4.0 + REPORT_SECONDS) == [timeline]


@pytest.mark.parametrize(
    ("sender", "said"),
    [
        ("b", times(0)),
        ("a", times(2)),
        ("a", times(0, attempt=2)),
        ("a", StageTimes(request_id="other", attempt=1, replica=REPLICA.id, stage=0)),
        ("a", StageTimes(request_id="q", attempt=1, replica="another", stage=0)),
    ],
    ids=["a stranger", "no such stage", "no such attempt", "no such request", "another replica"],
)
def test_what_a_device_tells_of_what_is_not_its_own_does_not_count(
    sender: str, said: StageTimes
) -> None:
    traces, timeline = PendingTraces(), running()
    traces.add("q", timeline)

    assert not traces.tell(sender, said)
    assert timeline.attempts[0].told == {}


def test_a_request_that_waits_in_vain_is_one_wait() -> None:
    timeline = Timeline(OWN, 1.0)
    timeline.submitted(1.5)
    timeline.lost(2.0)  # no room was granted
    timeline.lost(3.0)
    timeline.ended("failed", 4.0)

    spans = [(span.name, span.began_at, span.ended_at) for span in phases_of(timeline)]
    assert spans == [("prepare", 1.0, 1.5), ("queue", 1.5, 4.0)]


def told(stage: int, **phases: Spell) -> StageTimes:
    return msgspec.structs.replace(times(stage), **phases)


@pytest.mark.parametrize(
    ("decoding", "ends"),
    [(1.5, 13.0), (3.0, 12.0), (9.0, 11.5)],
    ids=["after the first token", "before it was here", "as if before prefill had ended"],
)
def test_decode_that_began_before_the_first_token_was_here_takes_of_prefills_last_hop(
    decoding: float, ends: float
) -> None:
    timeline = Timeline(OWN, 10.0)
    timeline.submitted(10.0)
    timeline.opened(1, REPLICA, REPLICA, 0, 10.0)
    timeline.token(None, 13.0)
    timeline.token("length", 15.0)
    timeline.ended("finished", 15.0)
    assert timeline.tell("a", told(0, prefill=Spell(1.0, 1.0, 1), decode=Spell(decoding, 1.0, 1)))
    assert timeline.tell("b", told(1, prefill=Spell(0.5, 0.5, 1)))

    spans = {span.name: span for span in phases_of(timeline)}

    assert spans["prefill"].ended_at == spans["decode"].began_at == ends
    hops = sum(span.seconds for span in spans["prefill"].children if span.name == "hop")
    assert hops == pytest.approx(ends - 11.5)


# --- whether at all --------------------------------------------------------------------------

ENDPOINT: Final = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}


def opened(environ: Mapping[str, str]) -> Tracer | None:
    tracer = open_tracer(environ, "gateway-1", "e2llm 0.1")
    if tracer is not None:
        tracer.stop()
    return tracer


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"},
        {**ENDPOINT, "OTEL_SDK_DISABLED": "true"},
    ],
)
def test_nothing_is_traced_unless_the_standard_variables_say_where_to(
    environ: dict[str, str],
) -> None:
    assert opened(environ) is None


@pytest.mark.parametrize(
    "environ", [ENDPOINT, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:9/v1/traces"}]
)
def test_an_address_turns_traces_on(environ: dict[str, str]) -> None:
    assert opened(environ) is not None


def test_without_the_extra_the_log_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "gateway.tracing.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)

    assert opened(ENDPOINT) is None
    assert "pip install 'e2llm[traces]'" in caplog.text


def test_another_protocol_is_not_spoken_and_the_log_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert opened({**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}) is not None
    assert "http/protobuf" in caplog.text
