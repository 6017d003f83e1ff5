import json
import logging
from collections.abc import Iterable

import pytest

from broker.control import DeviceState
from broker.exposition import Exposition
from broker.logs import JsonLines
from broker.metrics import Sample
from broker.plan import PlanState, Role
from broker.telemetry import Reading, Telemetry
from gateway.fogview import FogView
from gateway.metrics import TABLE, fog_samples, request_samples, state_samples
from gateway.requests import Readiness
from tests.gateway.scripted_fog import Run, ScriptedFog, generation, plan, replica, view_of
from tests.support.gateway_api import Api
from tests.support.metrics import NONE, Labels, labels, parsed


def told(samples: Iterable[Sample]) -> dict[str, dict[Labels, float]]:
    body, _ = Exposition(TABLE, lambda: samples).text()
    return parsed(body.decode())


def with_kv(view: FogView, **used: int) -> FogView:
    for device, tokens in used.items():
        telemetry = Telemetry(kv_used_tokens=tokens)
        view = view.with_telemetry(device, Reading(telemetry, ()), 0.0)
    return view


def test_every_request_is_counted_by_what_ended_it() -> None:
    fog = ScriptedFog(replica("r", ["a", "b"], Role.BOTH))
    run = Run(fog)

    run.submit(generation("done", prompt=5, tokens=8))
    run.advance(2)
    run.submit(generation("left"))
    run.dispatcher.cancel("left", run.now)
    fog.silent = {"a"}
    run.submit(generation("late", deadline=1.0))
    run.advance(3)

    found = told(request_samples(run.dispatcher.measures.totals))
    ended = found["e2llm_request_success_total"]
    assert ended[labels(finished_reason="length")] == 1
    assert ended[labels(finished_reason="abort")] == 1
    assert ended[labels(finished_reason="error")] == 1
    assert ended[labels(finished_reason="stop")] == 0
    assert found["e2llm_e2e_request_latency_seconds_count"] == {NONE: 3}
    # Only the first came so far.
    assert found["e2llm_request_queue_time_seconds_count"] == {NONE: 1}
    assert found["e2llm_time_to_first_token_seconds_count"] == {NONE: 1}
    assert found["e2llm_time_per_output_token_seconds_count"] == {NONE: 1}
    assert found["e2llm_prompt_tokens_total"] == {NONE: 5}
    assert found["e2llm_generation_tokens_total"] == {NONE: 8}


def test_an_attempt_that_the_fog_loses_is_counted_and_the_wait_only_once() -> None:
    fog = ScriptedFog(replica("r", ["a"], Role.BOTH), replica("s", ["b"], Role.BOTH))
    run = Run(fog)
    run.submit(generation("moved", tokens=200))
    run.advance(1)
    first = next(names["device"] for names, _ in fog.received)

    run.see(view_of(*fog.replicas.values(), states={first: DeviceState.LOST}))
    run.advance(20)

    found = told(request_samples(run.dispatcher.measures.totals))
    assert found["e2llm_lost_attempts_total"] == {NONE: 1}
    assert found["e2llm_request_queue_time_seconds_count"] == {NONE: 1}
    assert found["e2llm_request_success_total"][labels(finished_reason="length")] == 1


def test_the_fog_is_told_by_states_and_never_by_names() -> None:
    whole, broken = replica("r", ["a", "b"]), replica("s", ["c"])
    view = view_of(whole, broken, states={"c": DeviceState.LOST})
    coming = plan(whole, version=7, state=PlanState.PREPARING)

    found = told(fog_samples(view.with_plan(coming)))

    assert found["e2llm_devices"][labels(state="ready")] == 2
    assert found["e2llm_devices"][labels(state="lost")] == 1
    assert found["e2llm_replicas"] == {labels(state="complete"): 1, labels(state="incomplete"): 1}
    assert found["e2llm_plan_version"] == {NONE: 1}
    assert found["e2llm_plan_loaded_ratio"] == {NONE: 0}
    assert found["e2llm_planner_up"] == {NONE: 0}


@pytest.mark.parametrize(
    ("used", "share"),
    [({"a": 1024, "b": 1024}, 0.25), ({"a": 4096}, 1.0), ({}, None), ({"c": 9}, None)],
    ids=["both say it", "one says nothing", "nobody says", "a stranger says"],
)
def test_kv_is_used_to_the_share_that_devices_say(used: dict[str, int], share: float) -> None:
    view = with_kv(view_of(replica("r", ["a", "b"], kv_tokens=4096)), **used)

    found = told(fog_samples(view))

    assert found.get("e2llm_kv_cache_usage_perc") == (None if share is None else {NONE: share})


def test_a_gateway_says_how_it_stands() -> None:
    figures = {"running": 3, "waiting": 2, "journal": False, "dropped": {"plan": 4}}

    found = told(state_samples(Readiness(True, "ready", details=figures)))

    assert found["e2llm_num_requests_running"] == {NONE: 3}
    assert found["e2llm_num_requests_waiting"] == {NONE: 2}
    assert found["e2llm_ready"] == {NONE: 1}
    assert found["e2llm_journal_up"] == {NONE: 0}
    assert found["e2llm_dropped_messages_total"] == {labels(kind="plan"): 4}


async def test_prometheus_gets_metrics_over_http(api: Api) -> None:
    api.engine.traffic.sent(b"123")

    answer = await api.get("/metrics")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    found = parsed(answer.text)
    assert found["e2llm_bus_payload_bytes_total"][labels(direction="sent")] == 3
    assert found["e2llm_generation_tokens_total"] == {NONE: 0}


async def test_a_request_that_ended_is_a_line_of_the_log_with_its_id_and_no_text(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    question = {"messages": [{"role": "user", "content": "7 + 5?"}]}
    with caplog.at_level(logging.INFO, logger="gateway.meter"):
        answer = await api.post("/v1/chat/completions", question)

    (record,) = [each for each in caplog.records if each.name == "gateway.meter"]
    line = json.loads(JsonLines().format(record))
    assert line["request_id"] == answer.json()["id"]
    assert line["state"] == "finished"
    assert line["answer_tokens"] == answer.json()["usage"]["completion_tokens"]
    assert "It is" not in str(line)
