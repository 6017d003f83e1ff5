"""What a gateway says at ``GET /metrics``. Pure.

Names are those of vLLM with ``e2llm_`` for ``vllm:`` where it has one for the same, so that its
dashboards need one replacement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from broker.control import DeviceState
from broker.metrics import BUS, Kind, Metric, Sample, bus_samples
from broker.plan import Replica
from broker.traffic import Traffic
from gateway.fogview import FogView
from gateway.report import load_progress
from gateway.requests import Readiness
from gateway.totals import FINISHED_REASONS, Totals

_TTFT: Final = Metric(
    "e2llm_time_to_first_token_seconds",
    Kind.HISTOGRAM,
    "From the submission of a request to its first token, waiting included",
    alike="vllm:time_to_first_token_seconds, gen_ai.server.time_to_first_token",
)
_TPOT: Final = Metric(
    "e2llm_time_per_output_token_seconds",
    Kind.HISTOGRAM,
    "Time per token after the first, each value a mean over up to 32 tokens of a request",
    alike="vllm:request_time_per_output_token_seconds, gen_ai.server.time_per_output_token",
)
_QUEUE: Final = Metric(
    "e2llm_request_queue_time_seconds",
    Kind.HISTOGRAM,
    "From the submission of a request until replicas have room for it",
    alike="vllm:request_queue_time_seconds",
)
_LATENCY: Final = Metric(
    "e2llm_e2e_request_latency_seconds",
    Kind.HISTOGRAM,
    "From the submission of a request to its end, however it ended",
    alike="vllm:e2e_request_latency_seconds, gen_ai.server.request.duration",
)
_FINISHED: Final = Metric(
    "e2llm_request_success_total",
    Kind.COUNTER,
    "Requests that ended, by `finished_reason`: stop or length as the model ended them, abort "
    "where nobody reads on (the client left, or a stop sequence came), error where the fog failed",
    ("finished_reason",),
    alike="vllm:request_success_total",
)
_PROMPT_TOKENS: Final = Metric(
    "e2llm_prompt_tokens_total",
    Kind.COUNTER,
    "Tokens of prompts that were taken in; a lost attempt is taken in again",
    alike="vllm:prompt_tokens_total, gen_ai.client.token.usage",
)
_ANSWER_TOKENS: Final = Metric(
    "e2llm_generation_tokens_total",
    Kind.COUNTER,
    "Tokens of answers",
    alike="vllm:generation_tokens_total, gen_ai.client.token.usage",
)
_PREFIX_QUERIES: Final = Metric(
    "e2llm_prefix_cache_queries_total",
    Kind.COUNTER,
    "Tokens of prompts that might have been found in kept KV caches",
    alike="vllm:prefix_cache_queries_total",
)
_PREFIX_HITS: Final = Metric(
    "e2llm_prefix_cache_hits_total",
    Kind.COUNTER,
    "Those that were found",
    alike="vllm:prefix_cache_hits_total",
)
_RUNNING: Final = Metric(
    "e2llm_num_requests_running",
    Kind.GAUGE,
    "Requests that stages hold",
    alike="vllm:num_requests_running",
)
_WAITING: Final = Metric(
    "e2llm_num_requests_waiting",
    Kind.GAUGE,
    "Requests that no replica has taken yet",
    alike="vllm:num_requests_waiting",
)
_KV_USAGE: Final = Metric(
    "e2llm_kv_cache_usage_perc",
    Kind.GAUGE,
    "Share of the KV caches of complete replicas that is in use, 1 is all, as devices say",
    alike="vllm:kv_cache_usage_perc",
)
_LOST_ATTEMPTS: Final = Metric(
    "e2llm_lost_attempts_total",
    Kind.COUNTER,
    "Attempts at requests that the fog lost or refused, so that they were queued again",
)
_DROPPED: Final = Metric(
    "e2llm_dropped_messages_total",
    Kind.COUNTER,
    "Messages that were ignored, by `kind`: the kind of topic, or the reason",
    ("kind",),
)
_READY: Final = Metric(
    "e2llm_ready", Kind.GAUGE, "1 while a request can be served, as `GET /readyz` says"
)
_BUS_UP: Final = Metric("e2llm_bus_up", Kind.GAUGE, "1 while the MQTT broker is connected")
_JOURNAL_UP: Final = Metric(
    "e2llm_journal_up", Kind.GAUGE, "1 while requests are written down in Redis"
)
_PLANNER_UP: Final = Metric("e2llm_planner_up", Kind.GAUGE, "1 while a planner is on the bus")
_PLAN_VERSION: Final = Metric(
    "e2llm_plan_version", Kind.GAUGE, "Version of the plan that serves; 0 before the first"
)
_PLAN_LOADED: Final = Metric(
    "e2llm_plan_loaded_ratio",
    Kind.GAUGE,
    "Share of the bytes of the coming plan in memory; absent while none is coming",
)
_REPLICAS: Final = Metric(
    "e2llm_replicas",
    Kind.GAUGE,
    "Replicas of the plan that serves, by `state`: complete, or incomplete without some stage",
    ("state",),
)
_DEVICES: Final = Metric(
    "e2llm_devices",
    Kind.GAUGE,
    "Devices that were seen, by `state`: ready, sleeping or lost",
    ("state",),
)

TABLE: Final = (
    *(_TTFT, _TPOT, _QUEUE, _LATENCY, _FINISHED, _PROMPT_TOKENS, _ANSWER_TOKENS),
    *(_RUNNING, _WAITING, _KV_USAGE, _PREFIX_QUERIES, _PREFIX_HITS, _LOST_ATTEMPTS, _DROPPED),
    *(_READY, _PLANNER_UP, _PLAN_VERSION, _PLAN_LOADED, _REPLICAS, _DEVICES),
    *(_BUS_UP, _JOURNAL_UP),
    *BUS,
)


def samples(
    totals: Totals, view: FogView, state: Readiness, traffic: Traffic, *, is_connected: bool
) -> Iterator[Sample]:
    """Yield all that a gateway says.

    Args:
        totals: Of requests for all models.
        view: What is known of the fog.
        state: As `gateway.report.readiness` says it, with the figures of the bus side.
        traffic: Over all connections to the broker.
        is_connected: Whether the one for requests stands.
    """
    yield from request_samples(totals)
    yield from fog_samples(view)
    yield from state_samples(state)
    yield _BUS_UP.of(is_connected)
    yield from bus_samples(traffic)


def request_samples(totals: Totals) -> Iterator[Sample]:
    """Yield what requests experienced."""
    yield _TTFT.of(totals.ttft)
    yield _TPOT.of(totals.tpot)
    yield _QUEUE.of(totals.queue)
    yield _LATENCY.of(totals.latency)
    for reason in FINISHED_REASONS:
        # From 0, or a query for errors would miss the first one.
        yield _FINISHED.of(totals.finished[reason], reason)
    yield _PROMPT_TOKENS.of(totals.prompt_tokens)
    yield _ANSWER_TOKENS.of(totals.num_tokens)
    yield _PREFIX_QUERIES.of(totals.prompt_tokens)
    yield _PREFIX_HITS.of(totals.cached_tokens)
    yield _LOST_ATTEMPTS.of(totals.lost_attempts)


def fog_samples(view: FogView) -> Iterator[Sample]:
    """Yield what is known of the fog."""
    planner = view.planner
    is_up = planner is not None and planner.state is DeviceState.READY
    yield _PLANNER_UP.of(is_up)
    yield _PLAN_VERSION.of(0 if view.active is None else view.active.version)
    if view.preparing is not None:
        yield _PLAN_LOADED.of(load_progress(view, view.preparing) or 0.0)
    replicas = [] if view.active is None else view.active.all_replicas
    complete = [replica for replica in replicas if view.is_complete(replica)]
    yield _REPLICAS.of(len(complete), "complete")
    yield _REPLICAS.of(len(replicas) - len(complete), "incomplete")
    states = Counter(d.status.state for d in view.devices.values() if d.status is not None)
    for state in DeviceState:
        yield _DEVICES.of(states[state], state.value)
    if (usage := kv_usage(view, complete)) is not None:
        yield _KV_USAGE.of(usage)


def state_samples(state: Readiness) -> Iterator[Sample]:
    """Yield what the bus side says of itself."""
    yield _READY.of(state.ready)
    details = state.details
    yield _RUNNING.of(details.get("running", 0))
    yield _WAITING.of(details.get("waiting", 0))
    yield _JOURNAL_UP.of(details.get("journal", False))
    for kind, num_messages in sorted(details.get("dropped", {}).items()):
        yield _DROPPED.of(num_messages, kind)


def kv_usage(view: FogView, replicas: Sequence[Replica]) -> float | None:
    """Return the share of the KV positions of ``replicas`` in use; None: nobody says.

    A position counts once for each device that keeps its part of it.
    """
    used = available = 0
    counted: set[str] = set()
    for replica in replicas:
        for stage in replica.stages:
            telemetry = view.telemetry(stage.device)
            if telemetry is None or telemetry.kv_used_tokens is None:
                continue
            available += replica.kv_tokens
            if stage.device not in counted:
                # A device says it for all its stages together.
                counted.add(stage.device)
                used += telemetry.kv_used_tokens
    return used / available if available else None
