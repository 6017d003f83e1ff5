"""Traces on their way out: OpenTelemetry's SDK and OTLP over HTTP, in this module alone.

Where they go, which requests are traced and how they are batched is said by the standard
variables ``OTEL_*``, which the SDK reads itself. A thread of the SDK exports; when the collector
is slow or gone, spans are dropped, and no request waits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.requests import Generation
from gateway.tracing import spans
from gateway.tracing.timeline import Timeline
from gateway.tracing.tracer import Asked

_SERVICE: Final = "e2llm-gateway"
_STOP_SECONDS: Final = 2.0
"""What a gateway that stops waits for a collector."""


def utc_offset() -> float:
    """Return what to add to steady seconds to get UTC seconds."""
    return time.time() - time.monotonic()


@dataclass(frozen=True, slots=True)
class _Begun:
    """A request's span, and what to add to its steady seconds to get UTC seconds.

    One sum for all of its spans: else they would not fit together where a clock is set.
    """

    span: Span
    offset: float

    def nanoseconds(self, at: float) -> int:
        """Return UTC nanoseconds."""
        return int((at + self.offset) * 1e9)


class OtlpTracer:
    """`gateway.tracing.tracer.Tracer`, by the standard variables.

    Args:
        gateway: The gateway's id.
        software: Its version.
        exporter: By default one for OTLP over HTTP.
        offset: What to add to the engine's seconds to get UTC seconds.
    """

    def __init__(
        self,
        gateway: str,
        software: str,
        exporter: SpanExporter | None = None,
        offset: Callable[[], float] = utc_offset,
    ) -> None:
        self._offset = offset
        self._propagator = TraceContextTextMapPropagator()
        self._provider = TracerProvider(
            resource=_resource(gateway, software), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("e2llm", software)

    def begin(self, generation: Generation, asked: Asked) -> Timeline | None:
        offset = self._offset()
        span = self._tracer.start_span(
            f"{asked.operation} {asked.model}",
            # Not this task's context: somebody else's spans are none of ours.
            self._propagator.extract(asked.carrier, Context()),
            SpanKind.SERVER,
            _attributes(generation, asked),
            start_time=int((asked.began_at + offset) * 1e9),
        )
        if not span.is_recording():
            return None
        own: dict[str, str] = {}
        self._propagator.inject(own, set_span_in_context(span, Context()))
        return Timeline(own["traceparent"], asked.began_at, _Begun(span, offset))

    def end(self, timeline: Timeline) -> None:
        begun = timeline.span
        assert isinstance(begun, _Begun), "begun here"
        span = begun.span
        for phase in spans.phases_of(timeline):
            self._add(phase, span, begun)
        span.set_attributes(_became(timeline))
        if timeline.error is not None:
            span.set_status(Status(StatusCode.ERROR, timeline.error))
        ended_at = timeline.attempts[-1].ended_at
        assert ended_at is not None, "only what has ended is exported"
        span.end(begun.nanoseconds(ended_at))

    def stop(self) -> None:
        stopping = Thread(target=self._provider.shutdown, name="traces-stop", daemon=True)
        stopping.start()
        stopping.join(_STOP_SECONDS)

    def _add(self, made: spans.Span, parent: Span, begun: _Begun) -> None:
        span = self._tracer.start_span(
            made.name,
            set_span_in_context(parent, Context()),
            attributes=dict(made.attributes),
            start_time=begun.nanoseconds(made.began_at),
        )
        for child in made.children:
            self._add(child, span, begun)
        if made.is_lost:
            span.set_status(Status(StatusCode.ERROR, "the attempt was lost"))
        span.end(begun.nanoseconds(made.ended_at))


def _resource(gateway: str, software: str) -> Resource:
    named = {"service.version": software, "service.instance.id": gateway}
    # What is given here would count before the variables.
    given = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in given:
        named["service.name"] = _SERVICE
    return Resource.create(named)


def _attributes(generation: Generation, asked: Asked) -> dict[str, str | int | float]:
    """Return what is asked, by the GenAI conventions; never texts or tokens."""
    sampling = generation.sampling
    return {
        "gen_ai.operation.name": asked.operation,
        "gen_ai.provider.name": "e2llm",
        "gen_ai.request.model": asked.model,
        "gen_ai.request.max_tokens": generation.max_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.response.id": generation.journal_id.rpartition("-")[0],
        "gen_ai.response.model": asked.model,
        "gen_ai.usage.input_tokens": len(generation.prompt_ids),
        "e2llm.request_id": generation.request_id,
        "e2llm.choice": sampling.choice_index,
    }


def _became(timeline: Timeline) -> dict[str, str | int | list[str]]:
    """Return what became of it."""
    found: dict[str, str | int | list[str]] = {
        "gen_ai.usage.output_tokens": timeline.num_tokens,
        "e2llm.attempts": sum(attempt.opened_at is not None for attempt in timeline.attempts),
        "e2llm.state": timeline.state or "",
    }
    if timeline.finish_reason is not None:
        found["gen_ai.response.finish_reasons"] = [timeline.finish_reason]
    if timeline.error is not None:
        found["error.type"] = timeline.error
    return found
