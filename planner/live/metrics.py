"""What a planner says at ``/metrics``. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from broker.metrics import BUS, Kind, Metric, Sample, bus_samples
from broker.plan import Role
from broker.traffic import Traffic
from planner.live.control import Control

_LEADS: Final = Metric(
    "e2llm_planner_leads", Kind.GAUGE, "1 while this planner may publish, 0 while another does"
)
_REDIS_UP: Final = Metric("e2llm_planner_redis_up", Kind.GAUGE, "1 while Redis answers")
_VERSION: Final = Metric(
    "e2llm_planner_plan_version", Kind.GAUGE, "Version of the latest plan, loading ones included"
)
_IS_CHANGING: Final = Metric(
    "e2llm_planner_plan_is_changing", Kind.GAUGE, "1 while devices load another plan"
)
_DECISIONS: Final = Metric(
    "e2llm_planner_decisions_total",
    Kind.COUNTER,
    "Decisions, by `outcome`: adopted (a plan with other replicas), kept (the same with new "
    "predictions), or none (no plan, or what became of one)",
    ("outcome",),
)
_DEVICES: Final = Metric(
    "e2llm_planner_devices",
    Kind.GAUGE,
    "Devices by `state`: ready, lost (also silent ones), or failed to load",
    ("state",),
)
_REPLICAS: Final = Metric(
    "e2llm_planner_replicas", Kind.GAUGE, "Replicas of the latest plan by `role`", ("role",)
)
_PREDICTED: Final = {
    "requests_per_second": Metric(
        "e2llm_planner_predicted_requests_per_second",
        Kind.GAUGE,
        "What the latest plan can serve at most",
    ),
    "ttft_seconds": Metric(
        "e2llm_planner_predicted_ttft_seconds", Kind.GAUGE, "Its time to the first token"
    ),
    "tpot_seconds": Metric(
        "e2llm_planner_predicted_tpot_seconds", Kind.GAUGE, "Its time per output token"
    ),
}
_REFUSED_MESSAGES: Final = Metric(
    "e2llm_planner_refused_messages_total", Kind.COUNTER, "Messages that could not be read in full"
)
_REFUSED_FIELDS: Final = Metric(
    "e2llm_planner_refused_fields_total",
    Kind.COUNTER,
    "Fields of telemetry that could not be read, those in Redis included",
)

TABLE: Final = (
    *(_LEADS, _REDIS_UP, _VERSION, _IS_CHANGING, _DECISIONS, _DEVICES, _REPLICAS),
    *_PREDICTED.values(),
    *(_REFUSED_MESSAGES, _REFUSED_FIELDS),
    *BUS,
)

OUTCOMES: Final = ("adopted", "kept", "none")


@dataclass(frozen=True, slots=True)
class Refusals:
    """What could not be read since the planner started."""

    messages: int
    fields: int


def samples(control: Control, refused: Refusals, traffic: Traffic, now: float) -> Iterator[Sample]:
    """Yield all that a planner says at ``now``, seconds of the clock of ``control``."""
    rollout, authority = control.rollout, control.authority
    yield _LEADS.of(authority.leads(now))
    yield _REDIS_UP.of(authority.has_store)
    yield _VERSION.of(rollout.version)
    yield _IS_CHANGING.of(rollout.is_changing)
    for outcome in OUTCOMES:
        yield _DECISIONS.of(control.history.outcomes[outcome], outcome)
    states: Counter[str] = Counter()
    for view in control.knowledge.devices.values():
        is_here = view.is_ready and view.silent_seconds is None
        states["failed" if view.failure else "ready" if is_here else "lost"] += 1
    for state in ("ready", "lost", "failed"):
        yield _DEVICES.of(states[state], state)
    plan = rollout.latest
    if plan is not None:
        roles = Counter(replica.role for replica in plan.all_replicas)
        for role in Role:
            yield _REPLICAS.of(roles[role], role.value)
        for name, metric in _PREDICTED.items():
            value = getattr(plan.predicted, name)
            if value is not None:
                yield metric.of(value)
    yield _REFUSED_MESSAGES.of(refused.messages)
    yield _REFUSED_FIELDS.of(refused.fields)
    yield from bus_samples(traffic)
