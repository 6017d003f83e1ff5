"""docs/telemetry.md says what the code does."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import fakeredis
import pytest

from broker.access import Action, Kind, is_allowed
from broker.telemetry import Telemetry, parse_telemetry, schema, valid_telemetry
from broker.topics import DEVICE_TELEMETRY, QoS
from planner.live.history import Decided
from planner.live.levels import Level
from planner.live.settings import PlannerSettings
from planner.live.store import Store, telemetry_key

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "telemetry.md").read_text("utf-8")
_ROW = r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$"
ROWS = {
    name: (unit, values, text)
    for name, unit, values, text in re.findall(
        r"^\| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE, re.M
    )
}
SCHEMA = json.loads((DOCS / "telemetry.schema.json").read_text("utf-8"))
DEFAULTS = PlannerSettings(broker="mqtt://localhost")

# A value that stands at the edge of each range of the page, and one beyond it.
EDGES: dict[str, tuple[list[object], list[object]]] = {
    "0.0001 to 10000": ([0.0001, 10000], [0.00009, 10001]),
    "0 to 1": ([0, 0.5, 1], [-0.1, 1.1]),
    "true or false": ([True, False], [0, 1, "true"]),
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
    for value in [*beyond, "1", [1], *([] if field == "is_charging" else [True])]:
        assert valid_telemetry({field: value}) == (Telemetry(), (field,))


@pytest.mark.parametrize("field", sorted(Telemetry.__struct_fields__))
def test_the_unit_of_a_field_stands_in_its_name_and_in_the_schema(field: str) -> None:
    named = [unit for suffix, unit in UNITS.items() if field.endswith(f"_{suffix}")]
    if field == "tokens_per_second":
        named = ["1/s"]
    (described, _null) = SCHEMA["properties"][field]["anyOf"]
    assert ROWS[field][0].strip() == (named[-1] if named else "1") == described["x-unit"]
    assert ROWS[field][2].strip() == described["description"]


def test_the_schema_in_the_repository_is_that_of_the_code() -> None:
    assert schema() == SCHEMA


def test_topic_key_and_rights_are_those_of_the_code() -> None:
    topic = DEVICE_TELEMETRY.path("local", device="pi5-hall")
    assert f"topic `{topic}`, QoS 0, not retained" in PAGE
    assert (DEVICE_TELEMETRY.qos, DEVICE_TELEMETRY.retained) == (QoS.AT_MOST_ONCE, False)
    assert f"string key `{telemetry_key('local', 'pi5-hall')}`" in PAGE
    assert is_allowed("pi5-hall", Kind.NODE, Action.WRITE, topic, "local")
    assert not is_allowed("pi5-kitchen", Kind.NODE, Action.WRITE, topic, "local")


def test_settings_are_named_with_their_defaults() -> None:
    named = set(re.findall(r"`E2LLM_PLANNER_(\w+)`", PAGE))
    defaults = {
        "SPEED_THRESHOLD": (0.25, "25 % of a step's time"),
        "SPEED_SECONDS": (
            4.0,
            "or a third (`E2LLM_PLANNER_SPEED_SECONDS`: 4)",
        ),
        "CORE_SECONDS": (60.0, "60 s and more instead of 4"),
        "BATTERY_LIMIT": (0.15, "under 15 %"),
        "HEAT_LIMIT_CELSIUS": (95.0, "over 95 °C"),
        "REST_SECONDS": (300.0, "at least 300 s"),
        "LOOK_SECONDS": (2.0, "every two seconds"),
        "MIN_GAIN": (0.1, "at least 10 % more"),
        "TELEMETRY_SECONDS": (30.0, "for 30 s"),
        "FOLLOW_LENGTHS": (True, "plans follow it"),
    }
    assert named == set(defaults)
    for name, (value, text) in defaults.items():
        assert getattr(DEFAULTS, name.lower()) == value
        assert text in PAGE


@pytest.mark.parametrize(("factor", "seconds"), [(3.0, 5), (2.0, 10), (1.5, 25)])
def test_the_times_after_which_a_speed_counts_are_those_of_the_rule(
    factor: float, seconds: float
) -> None:
    level, now = Level(1.0), 0.0
    while level.value == 1.0:
        level = level.after(1 / factor, now, DEFAULTS.limits.speed)
        now += 0.5
    assert f"{seconds} s when" in PAGE
    assert now == pytest.approx(seconds, rel=0.25)


@pytest.mark.parametrize(
    "text",
    [
        re.search(r'^(\{"fields".+)$', PAGE, re.M)[1],  # type: ignore[index]
        '{"payload": {"temperature_celsius": 71.5}, "topic": "x", "_msgid": "1"}',
        '{"temperature_celsius": 71.5, "room": "hall"}',
    ],
)
def test_other_layouts_are_read(text: str) -> None:
    assert parse_telemetry(text) == (Telemetry(temperature_celsius=71.5), ())


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
    store.record(None, [Decided("plan 1: a decision")], now=0.0)
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
