"""Traces of whole requests: from the stages' clocks to what a collector gets over HTTP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Event
from typing import Final

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from broker.plan import Replica, Role
from broker.work import Open, Sampling
from gateway.requests import Generation
from gateway.tracing.otlp import OtlpTracer
from gateway.tracing.timeline import REPORT_SECONDS, Timeline
from gateway.tracing.tracer import Asked
from nodes.compute import JobCost
from nodes.timing import Timing
from tests.pipeline.test_tokens import CHUNK, CONFIG, Source, alone, prompts
from tests.support.otlp_receiver import Collector, ReceivedSpan, collector
from tests.support.pipeline import make_replica
from tests.support.simulated import SimulatedFog

PROMPT: Final = prompts()["q3"]
REQUEST: Final = Generation(
    request_id="cmpl-0123-0", prompt_ids=PROMPT, max_tokens=12, sampling=Sampling()
)
CALLER: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PHASES: Final = ["prepare", "queue", "prefill", "kv_transfer", "decode"]


class TracedFog(SimulatedFog):
    """A fog of which the clock goes on while something is computed."""

    def __init__(self, source: Source, *replicas: Replica) -> None:
        super().__init__(CONFIG, source, replicas, chunk_tokens=CHUNK, pace=self.compute)

    def compute(self, cost: JobCost) -> None:
        self.now += 0.002 * cost.rows**0.5

    def begin(self, tracer: OtlpTracer, carrier: dict[str, str] | None = None) -> None:
        asked = Asked("chat", "tiny", carrier or {}, self.now)
        self.now += 0.003  # The prompt is prepared.
        timeline = tracer.begin(REQUEST, asked)
        self.submit(REQUEST.request_id, PROMPT, max_tokens=REQUEST.max_tokens, timeline=timeline)

    def export(self, tracer: OtlpTracer) -> None:
        """Answer what was asked, wait for what stages tell, and send the trace."""
        self.run()
        while not self.traces:
            self.step()
        for timeline in self.traces:
            tracer.end(timeline)
        tracer.stop()


def two_replicas(source: Source) -> TracedFog:
    return TracedFog(
        source,
        make_replica((2, 5), ("a", "b"), Role.PREFILL),
        make_replica((1, 3, 5), ("c", "d", "e"), Role.DECODE),
    )


def tracer_of() -> OtlpTracer:
    return OtlpTracer("gateway-1", "e2llm 0.1")


@pytest.fixture(scope="module")
def source() -> Source:
    return Source(CONFIG)


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collector() as found:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


def assert_tiled(parent: ReceivedSpan, children: Sequence[ReceivedSpan]) -> None:
    """Check that spans follow each other without a gap, as long as their parent lasts."""
    ends = [parent.began_at, *(child.ended_at for child in children)]
    begins = [*(child.began_at for child in children), parent.ended_at]
    assert begins == pytest.approx(ends, abs=1e-6)


def test_phases_and_stages_of_one_trace_add_up_to_the_request(
    source: Source, collected: Collector
) -> None:
    fog, tracer = two_replicas(source), tracer_of()
    began_at = fog.now
    fog.begin(tracer)
    fog.export(tracer)

    root = collected.root()
    assert fog.tokens[REQUEST.request_id] == alone(source, PROMPT, Sampling(), REQUEST.max_tokens)
    assert collected.paths == ["/v1/traces"]
    assert {span.trace_id for span in collected.spans} == {root.trace_id}
    ended_at = fog.traces[0].attempts[-1].ended_at
    assert ended_at is not None
    assert root.seconds == pytest.approx(ended_at - began_at, abs=1e-6)

    phases = {phase.name: phase for phase in collected.children(root)}
    assert list(phases) == PHASES
    assert_tiled(root, list(phases.values()))

    prefill = collected.children(phases["prefill"])
    assert [span.attributes.get("e2llm.device") for span in prefill] == [None, "a", None, "b", None]
    assert {span.name for span in prefill} == {"hop", "prefill stage"}
    assert_tiled(phases["prefill"], prefill)
    decode = collected.children(phases["decode"])
    assert [span.attributes.get("e2llm.device") for span in decode] == ["c", "d", "e", None]
    assert_tiled(phases["decode"], decode)

    spent = sum(span.seconds for span in (*prefill, *decode)) + sum(
        phases[name].seconds for name in ("prepare", "queue", "kv_transfer")
    )
    assert spent == pytest.approx(root.seconds, rel=0.05)


def test_stages_say_what_they_computed_and_kv_that_came(
    source: Source, collected: Collector
) -> None:
    fog, tracer = two_replicas(source), tracer_of()
    fog.begin(tracer)
    fog.export(tracer)

    stages = [span for span in collected.spans if "e2llm.device" in span.attributes]
    computing = {
        (span.name, span.attributes["e2llm.device"]): span.attributes["e2llm.computing_seconds"]
        for span in stages
        if span.name != "kv stream"
    }
    chunks = len(PROMPT) / CHUNK
    in_prefill, in_decode = chunks * 0.002 * CHUNK**0.5, (REQUEST.max_tokens - 1) * 0.002
    expected = {("prefill stage", device): in_prefill for device in "ab"}
    assert computing == pytest.approx(
        expected | {("decode stage", device): in_decode for device in "cde"}
    )
    streams = {
        span.attributes["e2llm.layers"]: span.attributes["e2llm.kv.bytes"]
        for span in stages
        if span.name == "kv stream"
    }
    assert streams.keys() == {"0-0", "1-2", "3-4"}
    assert streams["1-2"] == streams["3-4"] == 2 * streams["0-0"] > 0


def test_a_trace_has_the_figures_of_the_conventions_and_no_token_of_the_request(
    source: Source, collected: Collector
) -> None:
    fog, tracer = two_replicas(source), tracer_of()
    fog.begin(tracer)
    fog.export(tracer)

    root = collected.root()
    assert root.name == "chat tiny"
    assert root.service == "e2llm-gateway"
    said = root.attributes
    assert said["gen_ai.request.model"] == "tiny"
    assert said["gen_ai.response.id"] == "cmpl-0123"
    assert said["gen_ai.usage.input_tokens"] == len(PROMPT)
    assert said["gen_ai.usage.output_tokens"] == REQUEST.max_tokens
    assert said["gen_ai.response.finish_reasons"] == ["length"]
    assert said["e2llm.state"] == "finished"
    lists = [v for span in collected.spans for v in span.attributes.values() if type(v) is list]
    assert lists == [["length"]]


def test_a_request_is_part_of_its_callers_trace(source: Source, collected: Collector) -> None:
    fog, tracer = two_replicas(source), tracer_of()
    fog.begin(tracer, {"traceparent": CALLER})
    fog.export(tracer)

    root = collected.root()
    assert f"00-{root.trace_id}-{root.parent_id}-01" == CALLER


@pytest.mark.parametrize(
    ("variables", "carrier"),
    [
        ({"OTEL_TRACES_SAMPLER": "always_off"}, {}),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, {"traceparent": "nonsense"}),
        ({}, {"traceparent": f"{CALLER[:-2]}00"}),
        ({"OTEL_SDK_DISABLED": "true"}, {}),
    ],
    ids=["sampled never", "no caller to follow", "the caller declines", "disabled"],
)
def test_stages_tell_nothing_of_a_request_that_is_not_traced(
    source: Source,
    collected: Collector,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    carrier: dict[str, str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    fog, tracer = two_replicas(source), tracer_of()
    fog.begin(tracer, carrier)
    fog.run()
    for _ in range(20):
        fog.step()
    tracer.stop()

    assert fog.finished == {REQUEST.request_id: "length"}
    assert fog.traces == []
    assert collected.spans == []
    assert fog.dispatcher.dropped["times of no traced attempt"] == 0


def test_an_attempt_that_is_lost_has_its_place_in_the_trace(
    source: Source, collected: Collector
) -> None:
    fog = TracedFog(
        source,
        make_replica((2, 5), ("a", "b"), Role.BOTH),
        make_replica((3, 5), ("c", "d"), Role.BOTH),
    )
    tracer = tracer_of()
    fog.begin(tracer)
    while len(fog.tokens[REQUEST.request_id]) < 4:
        fog.step()
    (held,) = (device for device in "ac" if fog.devices[device].kv_used_tokens)
    fog.lose(held)
    fog.export(tracer)

    root = collected.root()
    phases = collected.children(root)
    attempt = ["queue", "prefill", "decode"]
    assert [phase.name for phase in phases] == ["prepare", *attempt, *attempt]
    assert [index for index, phase in enumerate(phases) if phase.is_error] == [3]
    assert_tiled(root, phases)
    assert root.attributes["e2llm.attempts"] == 2
    assert root.attributes["gen_ai.usage.output_tokens"] == REQUEST.max_tokens
    assert not root.is_error


def test_what_a_stage_does_not_tell_is_unknown_and_the_phases_add_up_all_the_same(
    source: Source, collected: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(timing: Timing, message: Open, now: float) -> None:
        """As a node of an earlier version, which knows nothing of traces."""

    monkeypatch.setattr(Timing, "open", opened)
    fog, tracer = two_replicas(source), tracer_of()
    fog.begin(tracer)
    fog.export(tracer)

    root = collected.root()
    phases = collected.children(root)
    assert_tiled(root, phases)
    assert [phase.name for phase in phases] == PHASES
    below = [span for phase in phases for span in collected.children(phase)]
    assert {span.name for span in below} == {"unknown"}
    ended_at = fog.traces[0].attempts[-1].ended_at
    assert ended_at is not None
    assert fog.now >= ended_at + REPORT_SECONDS


class StuckExporter(SpanExporter):
    """A collector that never answers, until it is told to."""

    def __init__(self) -> None:
        self.began, self.goes_on = Event(), Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.began.set()
        self.goes_on.wait()
        return SpanExportResult.FAILURE


def test_requests_end_while_the_collector_does_not_answer(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each span is a batch, so that the first one already waits for the collector.
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    stuck = StuckExporter()
    fog, tracer = two_replicas(source), OtlpTracer("gateway-1", "e2llm 0.1", stuck)
    fog.begin(tracer)
    fog.run()
    while not fog.traces:
        fog.step()

    for timeline in fog.traces:
        tracer.end(timeline)
    assert stuck.began.wait(60)
    # The thread that exports is stuck, and this one is not.
    again: Timeline | None = tracer.begin(REQUEST, Asked("chat", "tiny", {}, fog.now))
    assert again is not None
    stuck.goes_on.set()
    tracer.stop()


def test_a_device_that_serves_alone_has_no_transfer(source: Source, collected: Collector) -> None:
    fog, tracer = TracedFog(source, make_replica((5,), ("a",), Role.BOTH)), tracer_of()
    fog.begin(tracer)
    fog.export(tracer)

    root = collected.root()
    phases = collected.children(root)
    assert [phase.name for phase in phases] == ["prepare", "queue", "prefill", "decode"]
    assert_tiled(root, phases)
