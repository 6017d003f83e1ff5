"""Metrics as values: what there is to say, and what is said of it now. Pure.

Each process has one table of `Metric`s, from which its `/metrics` and the documentation follow.
Text for Prometheus is made in `broker.exposition`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from broker.traffic import Traffic


class Kind(StrEnum):
    """What Prometheus calls the type of a metric."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


class Distribution:
    """How many values were at most so large, since the process started.

    Args:
        bounds: Upper ends of the buckets, growing; the last bucket, without end, is added.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.total = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def add(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def buckets(self) -> list[tuple[float, int]]:
        """Return each bound, infinity included, and how many values do not exceed it."""
        found, so_far = [], 0
        for bound, count in zip((*self.bounds, float("inf")), self._counts, strict=True):
            so_far += count
            found.append((bound, so_far))
        return found


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of a table.

    Attributes:
        name: As in a query, so with ``_total`` where it counts, and with its unit at the end.
        text: What it says, in one sentence without its full stop.
        labels: Each has few values, whatever people and requests do.
        alike: What others call it: vLLM, or OpenTelemetry's GenAI conventions.
    """

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    alike: str = ""

    def of(self, value: float | Distribution, *labels: str) -> Sample:
        """Return what it says now, for labels in the order of the table; ValueError if not all."""
        if len(labels) != len(self.labels):
            raise ValueError(f"{self.name} has the labels {self.labels}, not {labels}")
        if isinstance(value, Distribution) != (self.kind is Kind.HISTOGRAM):
            raise ValueError(f"{self.name} is a {self.kind}")
        return Sample(self, value, labels)


@dataclass(frozen=True, slots=True)
class Sample:
    """What a metric says now, under one set of labels."""

    metric: Metric
    value: float | Distribution
    labels: tuple[str, ...] = field(default=())


BUS_MESSAGES: Final = Metric(
    "e2llm_bus_messages_total",
    Kind.COUNTER,
    "MQTT messages of this process, by `direction`: sent or received",
    ("direction",),
)
BUS_BYTES: Final = Metric(
    "e2llm_bus_payload_bytes_total",
    Kind.COUNTER,
    "Bytes of their payloads",
    ("direction",),
)
BUS: Final = (BUS_MESSAGES, BUS_BYTES)
"""What every process says of its connection to the broker."""


def bus_samples(traffic: Traffic) -> Iterator[Sample]:
    """Yield what went over the connections of one process."""
    yield BUS_MESSAGES.of(traffic.messages_sent, "sent")
    yield BUS_MESSAGES.of(traffic.messages_received, "received")
    yield BUS_BYTES.of(traffic.bytes_sent, "sent")
    yield BUS_BYTES.of(traffic.bytes_received, "received")
