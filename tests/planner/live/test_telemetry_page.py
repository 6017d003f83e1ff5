"""docs/telemetry.md says what the code does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import fakeredis
import pytest

from broker.access import Action, Kind, is_allowed
from broker.control import Telemetry
from broker.topics import DEVICE_TELEMETRY, QoS
from planner.live.inputs import parse_telemetry, valid_telemetry
from planner.live.settings import PlannerSettings
from planner.live.store import Store, telemetry_key

PAGE = (Path(__file__).parents[3] / "docs" / "telemetry.md").read_text("utf-8")
ROWS = {
    name: (unit, values)
    for name, unit, values in re.findall(r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \|", PAGE, re.M)
}
DEFAULTS = PlannerSettings(broker="mqtt://localhost")

# A value that stands at the edge of each range of the page, and one beyond it.
EDGES: dict[str, tuple[list[object], list[object]]] = {
    "0.0001 to 10000": ([0.0001, 10000], [0.00009, 10001]),
    "0 or more": ([0, 0.5, 1e9], [-0.001]),
    "more than 0": ([0.001], [0, -1]),
    "whole, 0 or more": ([0, 7], [-1, 1.5]),
    "more than -273.15": ([-273.1, 0], [-273.15]),
    "0 or more, by replica": ([{"r": 0.0}, {}], [0.1, {"r": -0.1}]),
}
UNITS = {"seconds": "s", "bytes": "B", "bytes_per_second": "B/s", "celsius": "°C"}


def test_the_table_names_every_field_of_telemetry() -> None:
    assert sorted(ROWS) == sorted(Telemetry.__struct_fields__)


@pytest.mark.parametrize("field", sorted(Telemetry.__struct_fields__))
def test_the_range_of_a_field_is_the_one_that_is_checked(field: str) -> None:
    within, beyond = EDGES[ROWS[field][1].strip()]
    for value in within:
        assert valid_telemetry({field: value}) == (Telemetry(**{field: value}), ())  # type: ignore[arg-type]
    for value in [*beyond, "1", True, [1]]:
        assert valid_telemetry({field: value}) == (Telemetry(), (field,))


@pytest.mark.parametrize("field", sorted(Telemetry.__struct_fields__))
def test_the_unit_of_a_field_stands_in_its_name(field: str) -> None:
    named = [unit for suffix, unit in UNITS.items() if field.endswith(f"_{suffix}")]
    if field == "tokens_per_second":
        named = ["1/s"]
    assert ROWS[field][0].strip() == (named[-1] if named else "1")


def test_topic_key_and_rights_are_those_of_the_code() -> None:
    topic = DEVICE_TELEMETRY.path("local", device="pi5-hall")
    assert f"topic `{topic}`, QoS 0, not retained" in PAGE
    assert (DEVICE_TELEMETRY.qos, DEVICE_TELEMETRY.retained) == (QoS.AT_MOST_ONCE, False)
    assert f"string key `{telemetry_key('local', 'pi5-hall')}`" in PAGE
    assert is_allowed("pi5-hall", Kind.NODE, Action.WRITE, topic, "local")
    assert not is_allowed("pi5-kitchen", Kind.NODE, Action.WRITE, topic, "local")


def test_settings_are_named_with_their_defaults() -> None:
    for name in ("speed_threshold", "looks", "look_seconds", "telemetry_seconds"):
        assert f"`E2LLM_PLANNER_{name.upper()}`" in PAGE
    assert (DEFAULTS.speed_threshold, DEFAULTS.looks, DEFAULTS.look_seconds) == (0.25, 2, 2.0)
    assert "more than 25 %" in PAGE
    assert DEFAULTS.telemetry_seconds == 30.0


@pytest.fixture
def client() -> Iterator[fakeredis.FakeRedis]:
    client = fakeredis.FakeRedis(decode_responses=True)
    yield client
    client.close()


def test_the_command_for_redis_is_seen_by_the_planner(client: fakeredis.FakeRedis) -> None:
    found = re.search(r"^redis-cli SET (\S+) '(.+)' EX (\d+)$", PAGE, re.M)
    assert found is not None
    key, text, seconds = found.groups()
    client.set(key, text, ex=int(seconds))
    store = Store(client, "local", 1, telemetry_seconds=30.0, lease_seconds=10.0)
    assert store.look(["pi5-hall"], now=0.0).telemetry["pi5-hall"] == Telemetry(speed_ratio=0.25)


def test_the_streams_are_those_that_the_planner_writes(client: fakeredis.FakeRedis) -> None:
    store = Store(client, "local", 1, telemetry_seconds=30.0, lease_seconds=10.0)
    store.put("pi5-hall", Telemetry(speed_ratio=0.5), now=0.0)
    store.look(["pi5-hall"], now=0.0)
    store.record(None, ["plan 1: a decision"], now=0.0)
    streams = [key for key in client.keys("*") if client.type(key) == "stream"]
    assert sorted(streams) == sorted(set(re.findall(r"stream `([^`]+)`", PAGE)))
    assert '"source":"mqtt"' in str(client.get(telemetry_key("local", "pi5-hall")))


def test_the_command_for_mqtt_publishes_what_the_planner_reads() -> None:
    found = re.search(r"-t (\S+) \\\n +-m '(.+)'$", PAGE, re.M)
    assert found is not None
    topic, text = found.groups()
    assert DEVICE_TELEMETRY.match(topic) == {"site": "local", "device": "pi5-hall"}
    telemetry, refused = parse_telemetry(text)
    assert telemetry == Telemetry(temperature_celsius=71.5, battery_ratio=0.8)
    assert refused == ()
