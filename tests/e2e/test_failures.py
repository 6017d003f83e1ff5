"""Devices and the planner die or slow down; whoever reads an answer notices a pause at most."""

import contextlib
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import openai
import pytest
import redis

from broker.codec import decode_control
from broker.control import DeviceState
from broker.mqtt import MqttTransport
from broker.plan import Plan, PlannerStatus
from broker.topics import PLAN, PLANNER_STATUS
from broker.transport import Received
from fog.config import GATEWAY_ID
from planner.live.store import telemetry_key
from tests.support.bus import wait_for
from tests.support.running_fog import PATIENCE_SECONDS, SITE, RunningFog

pytestmark = [
    pytest.mark.xdist_group("e2e"),
    pytest.mark.slow,
    # Each waits for processes that start again and for plans.
    pytest.mark.timeout(240),
]

QUESTION = "What is 7 plus 5?"
NUM_TOKENS = 120


def stream(fog: RunningFog, on_token: Callable[[int], None] = lambda count: None) -> list[int]:
    """Stream an answer that goes on for `NUM_TOKENS`; return its token ids."""
    token_ids: list[int] = []
    with openai.OpenAI(base_url=f"{fog.url}/v1", api_key="none", max_retries=0) as client:
        chunks = client.chat.completions.create(
            model=fog.model,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            max_tokens=NUM_TOKENS,
            stream=True,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
        for chunk in chunks:
            for choice in chunk.choices:
                token_ids += (choice.model_extra or {}).get("token_ids") or []
            on_token(len(token_ids))
    return token_ids


def body(fog: RunningFog) -> dict[str, Any]:
    """Return the body that `stream` sends."""
    return {
        "model": fog.model,
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": NUM_TOKENS,
        "stream": True,
        "ignore_eos": True,
        "return_token_ids": True,
    }


@pytest.mark.parametrize("stage", [0, -1], ids=["master", "last stage"])
def test_a_stream_goes_on_with_the_same_tokens_when_its_node_is_killed(
    fog: RunningFog, stage: int
) -> None:
    undisturbed = stream(fog)
    assert len(undisturbed) == NUM_TOKENS
    before = fog.plan()
    victim = fog.replica("decode")["stages"][stage]["device"]
    pid = fog.devices()[victim]["pid"]

    def kill(count: int) -> None:
        if count >= 20 and fog.pids().get(victim) == pid:
            os.kill(pid, signal.SIGKILL)

    disturbed = stream(fog, kill)

    assert disturbed == undisturbed
    fog.until(lambda: fog.pids().get(victim, pid) != pid, f"{victim} is started again")
    fog.until(lambda: fog.devices()[victim]["pid"] == fog.pids()[victim], f"{victim} is back")
    fog.wait_until_whole()
    after = fog.plan()
    assert after["version"] > before["version"] or after["replicas"] == before["replicas"]
    assert fog.client.readiness().ready
    assert "12" in fog.ask(QUESTION).text


def test_a_stream_goes_on_behind_its_last_event_after_the_gateway_was_killed(
    fog: RunningFog,
) -> None:
    undisturbed = stream(fog)
    pid = fog.pids()["gateway"]
    pieces: list[str] = []

    def kill(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 20:
            os.kill(pid, signal.SIGKILL)

    # The client asks on by itself, behind the last event that it has.
    answer = fog.client.chat(body(fog), kill)

    assert answer.token_ids == undisturbed
    assert fog.pids()["gateway"] != pid


def test_a_speed_that_is_written_into_redis_brings_a_new_plan_to_the_bus(fog: RunningFog) -> None:
    version = fog.plan()["version"]
    slow = fog.replica("decode")["stages"][0]["device"]
    topic = PLAN.path(SITE)

    def blames_the_slow_one(message: Received) -> bool:
        if message.topic != topic:
            return False
        plan = decode_control(message.payload, Plan)
        return plan.version > version and slow in plan.trigger

    with (
        redis.Redis.from_url(fog.redis_url) as store,
        fog.bus(slow) as bus,
    ):
        bus.subscribe([(topic, PLAN.qos)])
        try:
            published = new_plan(bus, store, slow, blames_the_slow_one)
            fog.until(
                lambda: fog.plan()["version"] >= published.version, "the gateway has the plan"
            )
        finally:
            store.delete(telemetry_key(SITE, slow))
    assert "12" in fog.ask(QUESTION).text


def new_plan(
    bus: MqttTransport, store: "redis.Redis", device: str, is_it: Callable[[Received], bool]
) -> Plan:
    """Write speeds of a device until a plan comes of it.

    More than one, because a plan that is made just then for another reason takes a speed in
    without a word; the next one differs from it again.
    """
    for speed_ratio in (0.2, 0.03, 0.2, 0.03):
        telemetry = json.dumps({"speed_ratio": speed_ratio})
        store.set(telemetry_key(SITE, device), telemetry, ex=60)
        with contextlib.suppress(AssertionError):
            return decode_control(wait_for(bus, Received, is_it).payload, Plan)
    raise AssertionError(f"no plan blames {device} for its speed")


def says(message: Received, state: DeviceState, session: int) -> bool:
    """Whether a message is of the planner of that session, or of a later one."""
    if message.topic != PLANNER_STATUS.path(SITE):
        return False
    status = decode_control(message.payload, PlannerStatus)
    return status.state is state and status.session >= session


def test_without_a_planner_requests_go_on_and_its_successor_keeps_the_plan(
    fog: RunningFog,
) -> None:
    pid = fog.pids()["planner"]
    with fog.bus(GATEWAY_ID) as bus:
        topic = PLANNER_STATUS.path(SITE)
        bus.subscribe([(topic, PLANNER_STATUS.qos), (PLAN.path(SITE), PLAN.qos)])
        first = wait_for(bus, Received, lambda r: r.topic == topic)
        session = decode_control(first.payload, PlannerStatus).session
        before = fog.plan()

        os.kill(pid, signal.SIGKILL)

        # The broker says so: its last will.
        wait_for(bus, Received, lambda r: says(r, DeviceState.LOST, session))
        assert "12" in fog.ask(QUESTION).text
        assert fog.plan()["version"] == before["version"]
        # The successor says again what is retained, once the lease of the dead one has ended.
        message = wait_for(
            bus, Received, lambda r: r.topic == PLAN.path(SITE) and not r.retained, PATIENCE_SECONDS
        )
    plan = decode_control(message.payload, Plan)
    assert plan.version == before["version"], plan.trigger
    assert [replica.id for replica in plan.replicas] == [r["id"] for r in before["replicas"]]
    assert fog.pids()["planner"] != pid
    assert "12" in fog.ask(QUESTION).text
