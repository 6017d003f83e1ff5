"""The planner's memory in Redis: against a stand-in for speed, and against a real server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import fakeredis
import msgspec
import pytest
import redis

from broker.codec import decode_control
from broker.plan import Plan, PlanDecision, PlanState
from broker.telemetry import Telemetry
from planner.live.history import Decided
from planner.live.store import Store, telemetry_key


@pytest.fixture(params=["fake", "real"])
def client(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    if request.param == "fake":
        fake = fakeredis.FakeRedis(decode_responses=True)
        yield fake
        fake.close()
        return
    url = request.getfixturevalue("redis_url")
    with redis.Redis.from_url(url, decode_responses=True) as real:
        yield real


def store(client: redis.Redis | None, session: int = 1, **limits: float) -> Store:
    values = {"telemetry_seconds": 30.0, "lease_seconds": 10.0, **limits}
    return Store(client, "home", session, **values)


def entries(client: redis.Redis, stream: str) -> list[dict[str, str]]:
    found: Any = client.xrange(stream)
    return [fields for _, fields in found]


def plan(version: int) -> Plan:
    return Plan(
        version=version,
        state=PlanState.ACTIVE,
        model="m",
        revision="r",
        weights="float32",
        kv_format="float32",
        chunk_tokens=128,
        context_tokens=256,
        replicas=[],
    )


def test_telemetry_is_written_under_the_documented_key_and_expires(client: redis.Redis) -> None:
    ours = store(client)
    ours.put("pi", Telemetry(speed_ratio=0.5, queue_length=3), now=0.0)
    ours.look(["pi"], now=0.0)
    text = client.get("e2llm:home:device:pi:telemetry")
    assert isinstance(text, str)
    assert msgspec.json.decode(text) == {"speed_ratio": 0.5, "queue_length": 3, "source": "mqtt"}
    assert 25_000 < int(client.pttl("e2llm:home:device:pi:telemetry")) <= 30_000
    (entry,) = entries(client, "e2llm:home:telemetry")
    assert entry["device"] == "pi"


def test_the_latest_of_each_field_is_seen_until_it_is_old(client: redis.Redis) -> None:
    ours = store(client, telemetry_seconds=30.0)
    ours.put("pi", Telemetry(speed_ratio=0.5), now=0.0)
    ours.put("pi", Telemetry(temperature_celsius=60.0), now=20.0)
    assert ours.look(["pi"], now=20.0).telemetry["pi"] == Telemetry(
        speed_ratio=0.5, temperature_celsius=60.0
    )
    assert ours.look(["pi"], now=35.0).telemetry["pi"] == Telemetry(temperature_celsius=60.0)
    assert ours.look(["pi"], now=60.0).telemetry == {}


def test_another_writers_fields_go_first_for_as_long_as_its_value_lives(
    client: redis.Redis,
) -> None:
    ours = store(client)
    ours.put("pi", Telemetry(speed_ratio=1.0, queue_length=2), now=0.0)
    ours.look(["pi"], now=0.0)
    client.set(telemetry_key("home", "pi"), '{"speed_ratio": 0.25}', ex=30)
    for now in (2.0, 4.0):
        # The device goes on to send its own over MQTT.
        ours.put("pi", Telemetry(speed_ratio=1.0, queue_length=2), now=now)
        seen = ours.look(["pi"], now=now).telemetry["pi"]
        assert seen == Telemetry(speed_ratio=0.25, queue_length=2)
    assert client.get(telemetry_key("home", "pi")) == '{"speed_ratio": 0.25}'
    client.delete(telemetry_key("home", "pi"))
    ours.put("pi", Telemetry(speed_ratio=1.0), now=6.0)
    assert ours.look(["pi"], now=6.0).telemetry["pi"].speed_ratio == 1.0


def test_a_value_without_expiry_is_given_one(client: redis.Redis) -> None:
    client.set(telemetry_key("home", "pi"), '{"speed_ratio": 0.25}')
    assert store(client).look(["pi"], now=0.0).telemetry["pi"].speed_ratio == 0.25
    assert int(client.pttl(telemetry_key("home", "pi"))) > 0


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("not json", {}),
        ("[1, 2]", {}),
        ('{"speed_ratio": "fast", "queue_length": 2}', {"queue_length": 2}),
        ('{"speed_ratio": -1, "battery_ratio": 0.5}', {"battery_ratio": 0.5}),
        ('{"speed_ratio": true, "temperature_celsius": 20}', {"temperature_celsius": 20}),
        ('{"speed_ratio": 0, "unknown": {"a": 1}, "late_steps": 1}', {"late_steps": 1}),
        ('{"queue_length": 1.5, "stage_seconds": {"r": 0.1}}', {"stage_seconds": {"r": 0.1}}),
        ('{"stage_seconds": {"r": null}, "cpu_load_ratio": 0.1}', {"cpu_load_ratio": 0.1}),
    ],
)
def test_garbage_is_refused_field_by_field(text: str, kept: dict[str, object]) -> None:
    client = fakeredis.FakeRedis(decode_responses=True)
    client.set(telemetry_key("home", "pi"), text)
    ours = store(client)
    seen = ours.look(["pi"], now=0.0).telemetry
    assert seen.get("pi", Telemetry()) == msgspec.convert(kept, Telemetry)
    assert ours.num_refused_fields >= 1
    refused = ours.num_refused_fields
    ours.look(["pi"], now=2.0)
    assert ours.num_refused_fields == refused
    client.close()


def test_the_lease_is_held_by_one_until_it_gives_it_back(client: redis.Redis) -> None:
    first, second = store(client, 1), store(client, 2)
    assert first.look([], now=0.0).lease is True
    assert second.look([], now=0.0).lease is False
    assert first.look([], now=1.0).lease is True
    assert 5_000 < int(client.pttl("e2llm:home:planner:lease")) <= 10_000
    client.delete("e2llm:home:planner:lease")
    assert second.look([], now=2.0).lease is True
    assert first.look([], now=2.0).lease is False


def test_a_closed_planner_gives_back_only_its_own_lease() -> None:
    server = fakeredis.FakeServer()
    client = fakeredis.FakeRedis(server=server, decode_responses=True)
    first, second = (
        store(fakeredis.FakeRedis(server=server, decode_responses=True), n) for n in (1, 2)
    )
    first.look([], now=0.0)
    second.close()
    assert client.get("e2llm:home:planner:lease") == "1"
    first.close()
    assert client.get("e2llm:home:planner:lease") is None
    client.close()


def test_the_last_plan_and_decisions_are_recorded(client: redis.Redis) -> None:
    ours = store(client)
    record = PlanDecision(at=1.5, trigger="pi joined", outcome="kept", reason="none is better")
    told = [Decided("plan 7: pi joined", record), Decided("waiting")]
    ours.record(plan(7), told, now=0.0)
    assert ours.look([], now=0.0).last_version == 7
    text = client.hget("e2llm:home:plan", "plan")
    assert isinstance(text, str)
    assert decode_control(text.encode(), Plan) == plan(7)
    first, second = entries(client, "e2llm:home:plans")
    assert (first["decision"], second) == ("plan 7: pi joined", {"decision": "waiting"})
    assert decode_control(first["record"].encode(), PlanDecision) == record
    client.hset("e2llm:home:plan", "version", "garbage")
    assert ours.look([], now=0.0).last_version == 0


def test_without_redis_telemetry_is_remembered_and_the_lease_is_unknown() -> None:
    ours = store(None)
    ours.put("pi", Telemetry(speed_ratio=0.5), now=0.0)
    seen = ours.look(["pi", "other"], now=1.0)
    assert seen.lease is None
    assert seen.telemetry == {"pi": Telemetry(speed_ratio=0.5)}
    ours.record(plan(1), [Decided("x")], now=1.0)
    ours.close()


def test_redis_may_go_and_come_back(caplog: pytest.LogCaptureFixture) -> None:
    server = fakeredis.FakeServer()
    client = fakeredis.FakeRedis(server=server, decode_responses=True)
    ours = store(client)
    client.set(telemetry_key("home", "pi"), '{"speed_ratio": 0.25}')
    ours.look(["pi"], now=0.0)
    server.connected = False
    with caplog.at_level(logging.INFO):
        for now in (2.0, 4.0, 6.0):
            ours.put("pi", Telemetry(queue_length=1), now=now)
            seen = ours.look(["pi"], now=now)
            assert seen.lease is None
            # What Redis said last is good for as long as any telemetry.
            assert seen.telemetry["pi"] == Telemetry(speed_ratio=0.25, queue_length=1)
            ours.record(plan(1), [], now=now)
        assert ours.look(["pi"], now=31.0).telemetry["pi"] == Telemetry(queue_length=1)
        server.connected = True
        assert ours.look(["pi"], now=40.0).lease is True
    messages = [record.getMessage() for record in caplog.records]
    assert sum("does not answer" in message for message in messages) == 1
    assert messages[-1] == "redis answers again"


def test_a_dead_server_costs_little_time_and_no_exception() -> None:
    ours = Store.from_url(
        "redis://127.0.0.1:1/0", "home", 1, telemetry_seconds=30.0, lease_seconds=10.0
    )
    assert ours.look(["pi"], now=0.0).lease is None
    ours.close()
