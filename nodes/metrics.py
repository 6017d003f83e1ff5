"""What a node says at ``/metrics``: its telemetry, and how far loading is. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from broker.metrics import BUS, Kind, Metric, Sample, bus_samples
from broker.plan import Loaded
from broker.telemetry import Telemetry
from broker.traffic import Traffic

_OF_TELEMETRY: Final = {
    "cpu_load_ratio": Metric("e2llm_node_cpu_load_ratio", Kind.GAUGE, "Use of all cores"),
    "core_wait_ratio": Metric(
        "e2llm_node_core_wait_ratio",
        Kind.GAUGE,
        "Share of the time of its computations in which it waited for a core that others used",
    ),
    "speed_ratio": Metric(
        "e2llm_node_speed_ratio", Kind.GAUGE, "Speed now over the speed that it measured of itself"
    ),
    "temperature_celsius": Metric(
        "e2llm_node_temperature_celsius", Kind.GAUGE, "Of the hottest sensor"
    ),
    "battery_ratio": Metric("e2llm_node_battery_ratio", Kind.GAUGE, "Charge of the battery"),
    "memory_available_bytes": Metric(
        "e2llm_node_memory_available_bytes", Kind.GAUGE, "Memory that a process can still get"
    ),
    "memory_used_bytes": Metric(
        "e2llm_node_memory_used_bytes", Kind.GAUGE, "Memory that the model takes"
    ),
    "link_latency_seconds": Metric(
        "e2llm_node_link_latency_seconds", Kind.GAUGE, "One-way delay between device and broker"
    ),
    "link_bytes_per_second": Metric(
        "e2llm_node_link_bytes_per_second", Kind.GAUGE, "Rate of that link"
    ),
    "queue_length": Metric(
        "e2llm_node_queue_length", Kind.GAUGE, "Pieces of work that wait on the device"
    ),
    "tokens_per_second": Metric(
        "e2llm_node_tokens_per_second", Kind.GAUGE, "Rows of decode steps per second"
    ),
    "kv_used_tokens": Metric(
        "e2llm_node_kv_used_tokens", Kind.GAUGE, "Positions reserved in the KV cache"
    ),
    "kv_kept_tokens": Metric(
        "e2llm_node_kv_kept_tokens",
        Kind.GAUGE,
        "Positions of ended requests that it keeps for prompts that begin alike",
    ),
    "kv_chunks_sent": Metric(
        "e2llm_node_kv_chunks_sent_total", Kind.COUNTER, "KV chunks sent to other devices"
    ),
    "kv_chunks_received": Metric(
        "e2llm_node_kv_chunks_received_total", Kind.COUNTER, "KV chunks received from others"
    ),
    "proposed_tokens": Metric(
        "e2llm_node_spec_decode_num_draft_tokens_total",
        Kind.COUNTER,
        "Tokens that steps of its replicas carried as guesses",
        alike="vllm:spec_decode_num_draft_tokens_total",
    ),
    "accepted_tokens": Metric(
        "e2llm_node_spec_decode_num_accepted_tokens_total",
        Kind.COUNTER,
        "Guesses that came true",
        alike="vllm:spec_decode_num_accepted_tokens_total",
    ),
    "dropped_messages": Metric(
        "e2llm_node_dropped_messages_total", Kind.COUNTER, "Messages that were refused"
    ),
}
_STAGES: Final = Metric("e2llm_node_stages", Kind.GAUGE, "Stages that are in memory and ready")
_LOADED: Final = Metric(
    "e2llm_node_loaded_bytes", Kind.GAUGE, "Bytes of the present assignment in memory"
)
_TOTAL: Final = Metric("e2llm_node_assigned_bytes", Kind.GAUGE, "Bytes of the present assignment")
_SOURCES: Final = Metric(
    "e2llm_node_read_bytes",
    Kind.GAUGE,
    "Where bytes of the present assignment came from, by `source`: folder, cache, neighbour, "
    "gateway or hub",
    ("source",),
)
_FAILED: Final = Metric(
    "e2llm_node_load_failed", Kind.GAUGE, "1 while the present assignment could not be loaded"
)

TABLE: Final = (*_OF_TELEMETRY.values(), _STAGES, _LOADED, _TOTAL, _SOURCES, _FAILED, *BUS)


def samples(telemetry: Telemetry, loaded: Loaded, traffic: Traffic) -> Iterator[Sample]:
    """Yield all that a node says.

    Args:
        telemetry: The latest; what a device cannot measure is left out.
        loaded: The latest.
        traffic: Over both connections to the broker.
    """
    for name, metric in _OF_TELEMETRY.items():
        value = getattr(telemetry, name)
        if value is not None:
            yield metric.of(value)
    yield _STAGES.of(len(loaded.stages))
    yield _LOADED.of(loaded.loaded_bytes)
    yield _TOTAL.of(loaded.total_bytes)
    yield _FAILED.of(loaded.error is not None)
    read: Counter[str] = Counter()
    for each in loaded.sources:
        # The rest names a device or a host.
        read[each.source.partition(" ")[0]] += each.num_bytes
    for source, num_bytes in sorted(read.items()):
        yield _SOURCES.of(num_bytes, source)
    yield from bus_samples(traffic)
