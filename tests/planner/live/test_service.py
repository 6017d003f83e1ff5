"""The whole planner over the bus and the store, devices being played by the test."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import fakeredis
import pytest

from broker.control import DeviceState
from broker.plan import PlannerStatus, PlanState
from broker.telemetry import Telemetry
from broker.topics import (
    DEVICE_ASSIGNMENT,
    DEVICE_PROFILE,
    DEVICE_STATUS,
    DEVICE_TELEMETRY,
    PLANNER_STATUS,
)
from broker.transport import Publication, Refused
from planner.live.events import TOPICS
from planner.live.service import RefusedError
from planner.live.store import telemetry_key
from tests.planner import fogs
from tests.planner.live.planner_rig import SITE, Fog, store


@pytest.fixture
def redis_client() -> Iterator[fakeredis.FakeRedis]:
    client = fakeredis.FakeRedis(decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def fog(redis_client: fakeredis.FakeRedis) -> Fog:
    return Fog(store(redis_client)).start().run(5)


def test_a_fog_gets_an_active_plan_over_the_bus(fog: Fog) -> None:
    assert fog.plan.version == 1
    assert fog.plan.state is PlanState.ACTIVE
    assert fog.plan.created_at == 1.7e9
    status = fog.retained(PLANNER_STATUS)
    assert status == PlannerStatus(state=DeviceState.READY, session=100, problem=None, redis=True)


def test_telemetry_written_straight_into_redis_leads_to_a_new_plan_version(
    fog: Fog, redis_client: fakeredis.FakeRedis
) -> None:
    redis_client.set(telemetry_key(SITE, "a"), '{"speed_ratio": 0.25}', ex=30)
    fog.run(20)
    assert fog.plan.version > 1
    assert fog.plan.state is PlanState.ACTIVE
    assert "a is 4 times slower than planned" in fog.plan.trigger
    assert redis_client.hget(f"e2llm:{SITE}:plan", "version") == str(fog.plan.version)
    decisions: Any = redis_client.xrange(f"e2llm:{SITE}:plans")
    assert any(
        f"plan {fog.plan.version}: a is 4 times slower" in e["decision"] for _, e in decisions
    )


def test_telemetry_over_mqtt_reaches_redis_and_leads_to_a_new_plan_version(
    fog: Fog, redis_client: fakeredis.FakeRedis
) -> None:
    for _ in range(4):
        fog.say(DEVICE_TELEMETRY, Telemetry(speed_ratio=0.25), device="a")
        fog.run(2)
    assert fog.plan.version > 1
    assert "a is 4 times slower than planned" in fog.plan.trigger
    assert '"speed_ratio":0.25' in str(redis_client.get(telemetry_key(SITE, "a")))


def test_a_lost_device_leads_to_a_new_plan_version(fog: Fog) -> None:
    gone = fog.plan.replicas[0].stages[0].device
    fog.say(DEVICE_STATUS, fogs.status(state=DeviceState.LOST), device=gone)
    fog.run(1)
    assert fog.plan.version == 2
    assert all(s.device != gone for r in fog.plan.replicas for s in r.stages)


def test_without_redis_the_fog_is_planned_too() -> None:
    fog = Fog(store(None)).start().run(5)
    assert fog.plan.state is PlanState.ACTIVE
    status = fog.retained(PLANNER_STATUS)
    assert status is not None
    assert not status.redis


def test_a_restarted_planner_keeps_the_plan(fog: Fog, redis_client: fakeredis.FakeRedis) -> None:
    before = fog.plan
    fog.transport.drop()
    lost = fog.retained(PLANNER_STATUS)
    assert lost is not None
    assert lost.state is DeviceState.LOST
    redis_client.delete(f"e2llm:{SITE}:planner:lease")
    second = Fog(store(redis_client, 200), 200, fog.bus).run(10)
    assert second.plan == before
    status = second.retained(PLANNER_STATUS)
    assert status is not None
    assert (status.state, status.session) == (DeviceState.READY, 200)


def test_a_redis_that_comes_back_empty_changes_no_plan(
    fog: Fog, redis_client: fakeredis.FakeRedis
) -> None:
    before = fog.plan

    redis_client.flushall()
    fog.run(10)
    assert fog.plan == before
    assert redis_client.get(f"e2llm:{SITE}:planner:lease") == "100", "taken again"

    fog.transport.drop()
    redis_client.flushall()
    later = Fog(store(redis_client, 200), 200, fog.bus).run(10)
    assert later.plan == before


def test_the_second_planner_publishes_nothing(fog: Fog, redis_client: fakeredis.FakeRedis) -> None:
    second = Fog(store(redis_client, 200), 200, fog.bus)
    published = fog.bus.num_published
    for _ in range(20):
        second.now += 0.5
        second.service.step(0)
    assert fog.bus.num_published == published


def test_a_broker_that_lost_everything_gets_all_retained_state_again(fog: Fog) -> None:
    plan = fog.plan
    fog.transport.drop()
    for topic in list(fog.bus.retained):
        fog.devices.publish(Publication(topic, b"", retained=True))
    assert fog.bus.retained == {}
    fog.transport.connect()
    fog.run(2)
    assert fog.plan == plan
    assert fog.retained(DEVICE_ASSIGNMENT, device="a") is not None


GARBAGE = [b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe", b'{"state": 3}', b"x" * 5000]


@pytest.mark.parametrize("payload", GARBAGE)
def test_garbage_on_every_topic_is_counted_and_changes_nothing(fog: Fog, payload: bytes) -> None:
    for topic in TOPICS:
        names = {
            name: "x" for name in ("model", "device", "gateway") if f"{{{name}}}" in topic.template
        }
        fog.devices.publish(Publication(topic.path(SITE, **names), payload))
    fog.run(5)
    assert fog.plan.version == 1
    assert fog.service.num_refused_messages > 0 or payload in (b"", b"{}")


def test_a_refused_message_is_logged_with_its_topic_once(
    fog: Fog, caplog: pytest.LogCaptureFixture
) -> None:
    path = DEVICE_PROFILE.path(SITE, device="a")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            fog.devices.publish(Publication(path, b"garbage"))
        fog.run(1)
    warnings = [r.getMessage() for r in caplog.records if path in r.getMessage()]
    assert len(warnings) == 1
    assert fog.service.num_refused_messages == 3


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"71.5 C", "refused, for it is no JSON object"),
        (b'{"speed_ratio": "x"}', "refused speed_ratio"),
    ],
)
def test_telemetry_that_cannot_be_read_is_logged_with_the_reason(
    fog: Fog, caplog: pytest.LogCaptureFixture, payload: bytes, said: str
) -> None:
    path = DEVICE_TELEMETRY.path(SITE, device="a")
    with caplog.at_level(logging.WARNING):
        fog.devices.publish(Publication(path, payload))
        fog.run(1)
    assert f"{path}: {said} (1 refused so far)" in [r.getMessage() for r in caplog.records]


def test_each_field_of_a_device_that_is_refused_is_named_once(
    fog: Fog, redis_client: fakeredis.FakeRedis, caplog: pytest.LogCaptureFixture
) -> None:
    path = DEVICE_TELEMETRY.path(SITE, device="a")
    key = telemetry_key(SITE, "b")
    with caplog.at_level(logging.WARNING):
        for wrong in ('{"speed_ratio": "x"}', '{"speed_ratio": "y", "battery_ratio": 9e99}'):
            fog.devices.publish(Publication(path, wrong.encode()))
            redis_client.set(key, wrong)
            fog.run(3)
    texts = [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]
    assert texts == [
        f"{path}: refused speed_ratio (1 refused so far)",
        "telemetry of b in redis: refused speed_ratio",
        f"{path}: refused battery_ratio (2 refused so far)",
        "telemetry of b in redis: refused battery_ratio",
    ]


def test_fields_that_were_refused_are_counted_in_the_planner_s_status(
    fog: Fog, redis_client: fakeredis.FakeRedis
) -> None:
    redis_client.set(telemetry_key(SITE, "a"), '{"speed_ratio": "fast", "queue_length": -1}')
    path = DEVICE_TELEMETRY.path(SITE, device="b")
    fog.devices.publish(Publication(path, b'{"battery_ratio": "full"}'))
    fog.run(8)
    status = fog.retained(PLANNER_STATUS)
    assert status is not None
    assert (status.refused_fields, status.problem) == (3, None)


def test_a_refused_credential_ends_the_process(fog: Fog) -> None:
    fog.transport.inbox.put(Refused("planner", "bad user name or password"))
    with pytest.raises(RefusedError, match="bad user name"):
        fog.service.run(threading.Event())


def test_a_clean_stop_says_farewell_and_gives_back_the_lease(
    fog: Fog, redis_client: fakeredis.FakeRedis
) -> None:
    stop = threading.Event()
    stop.set()
    fog.service.run(stop)
    status = fog.retained(PLANNER_STATUS)
    assert status is not None
    assert status.state is DeviceState.LOST
    assert status.problem == "the planner is not running"
    assert redis_client.get(f"e2llm:{SITE}:planner:lease") is None
