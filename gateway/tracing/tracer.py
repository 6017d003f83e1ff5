"""What gives requests a trace, and whether anything does. Knows no OpenTelemetry."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from gateway.requests import GeneratedToken, Generation, TokenSource
from gateway.tracing.timeline import Timeline

logger = logging.getLogger(__name__)

TRACE_CONTEXT: Final = ("traceparent", "tracestate")
"""Headers of W3C Trace Context."""

_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a trace says of a request beside what the engine is told.

    Attributes:
        operation: As OpenTelemetry's GenAI conventions call it.
        model: The name that clients use.
        carrier: ``traceparent`` and ``tracestate`` of who asks, where there are some.
        began_at: When the request came in, in the engine's seconds.
    """

    operation: str
    model: str
    carrier: Mapping[str, str]
    began_at: float


class Tracer(Protocol):
    """Begins and ends traces. Neither waits for anything."""

    def begin(self, generation: Generation, asked: Asked) -> Timeline | None:
        """Return the timeline of a request that is to be traced; None: it is not."""

    def end(self, timeline: Timeline) -> None:
        """Export a request that has ended."""

    def stop(self) -> None:
        """Export what is left; blocks for up to 2 s where the collector does not answer."""


class Traced:
    """The tokens of an engine, which is told what to trace."""

    def __init__(self, engine: TokenSource, tracer: Tracer, asked: Asked) -> None:
        self._engine, self._tracer, self._asked = engine, tracer, asked

    def generate(self, generation: Generation) -> AsyncIterator[GeneratedToken]:
        """Return the engine's tokens; see `TokenSource.generate`."""
        timeline = self._tracer.begin(generation, self._asked)
        return self._engine.generate(replace(generation, timeline=timeline))


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether the standard variables say where traces go, and do not take it back."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    return any(environ.get(name, "").strip() for name in _ENDPOINTS)


def open_tracer(environ: Mapping[str, str], gateway: str, software: str) -> Tracer | None:
    """Return what exports traces, or None where nothing asks for them.

    Args:
        environ: Of this process; the SDK reads the rest of its settings there.
        gateway: The gateway's id.
        software: Its version.
    """
    if not is_wanted(environ):
        return None
    try:
        from gateway.tracing.otlp import OtlpTracer
    except ModuleNotFoundError as error:
        logger.error("%s: traces need pip install 'e2llm[traces]'; there are none", error)
        return None
    protocol = environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    if protocol not in ("", "http/protobuf"):
        logger.warning("OTEL_EXPORTER_OTLP_PROTOCOL=%s: traces go by http/protobuf", protocol)
    return OtlpTracer(gateway, software)
