"""What Home Assistant is told of a fog, against its documented keys."""

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from broker.control import DeviceControl, DeviceState, DeviceStatus, Placement
from broker.plan import PlannerStatus, Role
from broker.telemetry import Reading, Telemetry
from broker.topics import check_home_prefix, home_discovery, home_id
from gateway.fogview import FogView
from gateway.home.facts import FogFacts, fog_facts, gateway_facts
from gateway.home.things import Shown, Thing, is_of_another_gateway, things
from gateway.requests import Readiness
from tests.gateway.scripted_fog import replica, view_of
from tests.support.home_assistant import complaints

SHOWN = Shown("lab", "homeassistant", "gateway-1", "http://fog.lab:8080", "e2llm 1.0")
READY = Readiness(True, "ready", None, {"waiting": 3, "running": 2})
HOT = Telemetry(
    cpu_load_ratio=0.374,
    memory_available_bytes=3 << 30,
    memory_used_bytes=512 << 20,
    temperature_celsius=61.27,
    battery_ratio=0.8,
    tokens_per_second=12.34,
    queue_length=2,
)


def fog(telemetry: Telemetry = HOT) -> FogView:
    """Two replicas over three devices, and a device that does nothing."""
    view = view_of(replica("r", ["a", "b.1"], Role.PREFILL), replica("s", ["c"], Role.DECODE))
    idle = DeviceStatus(state=DeviceState.READY, session=1, software="e2llm 1.0")
    view = view.with_status("idle", idle, 0.0)
    for device in ("a", "b.1", "c"):
        view = view.with_telemetry(device, Reading(telemetry), 0.0)
    return view


def shown(view: FogView, readiness: Readiness = READY, by: Shown = SHOWN) -> dict[str, Thing]:
    """Return all things, by the last level of their states' topics."""
    found = things(by, fog_facts(view, readiness), gateway_facts(readiness))
    return {thing.state_topic.rpartition("/")[2]: thing for thing in found}


def described(thing: Thing) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(thing.discovery)
    return message


def test_every_message_has_only_documented_keys_and_values_that_go_together() -> None:
    found = shown(fog())

    assert sorted(found) == ["a", "b.1", "c", "fog", "gateway-1", "idle"]
    for thing in found.values():
        assert complaints(thing.discovery_topic, thing.discovery) == []


def test_a_message_with_a_key_that_is_not_documented_would_be_noticed() -> None:
    thing = shown(fog())["a"]
    message = described(thing)
    message["components"]["load"]["colour"] = "red"
    message["components"]["temperature"]["unit_of_measurement"] = "K/s"
    del message["components"]["cordon"]["command_topic"]

    found = complaints(thing.discovery_topic, json.dumps(message).encode())

    assert found == [
        "cordon: lacks command_topic",
        "load: sensor has the unknown key colour",
        "temperature: K/s is no unit of temperature",
    ]


def test_no_two_entities_have_the_same_unique_id() -> None:
    ids = [
        component["unique_id"]
        for thing in shown(fog()).values()
        for component in described(thing)["components"].values()
    ]

    assert len(ids) == len(set(ids))


def test_every_value_that_is_told_has_an_entity_and_the_other_way_round() -> None:
    for thing in shown(fog()).values():
        for key, component in described(thing)["components"].items():
            if component["state_topic"] == thing.state_topic:
                assert component["value_template"] == f"{{{{ value_json.{key} }}}}"
                assert key in thing.state
        assert (
            thing.state.keys() - {"temperature", "battery"} <= described(thing)["components"].keys()
        )


def test_a_device_is_told_with_its_place_in_the_plan_and_its_figures() -> None:
    state = shown(fog())["b.1"].state

    assert state == {
        "role": "prefill",
        "layers": "3-5",
        "cordon": "OFF",
        "placement": "open",
        "tokens_per_second": 12.3,
        "queue": 2,
        "load": 37,
        "memory_available": 3072,
        "memory_used": 512,
        "temperature": 61.3,
        "battery": 80,
    }


def test_a_device_without_a_place_is_idle() -> None:
    state = shown(fog())["idle"].state

    assert (state["role"], state["layers"], state["load"]) == ("idle", "none", None)


def test_a_device_shows_a_temperature_from_the_first_one_on() -> None:
    without = described(shown(fog(replace_telemetry(temperature_celsius=None)))["a"])
    with_one = described(shown(fog())["a"])

    assert "temperature" not in without["components"]
    assert "temperature" in with_one["components"]


def replace_telemetry(**changes: Any) -> Telemetry:
    values = {name: getattr(HOT, name) for name in HOT.__struct_fields__}
    return Telemetry(**{**values, **changes})


@pytest.mark.parametrize("placement", [Placement.CORDONED, Placement.DRAINING])
def test_the_switch_is_on_while_a_device_gets_nothing_new(placement: Placement) -> None:
    state = shown(fog().with_control("a", DeviceControl(placement=placement, at=1.0)))["a"].state

    assert (state["cordon"], state["placement"]) == ("ON", placement.value)


def test_the_fog_counts_each_token_once_and_sums_what_waits() -> None:
    state = shown(fog())["fog"].state

    # Of the replicas that decode, so of c alone; a and b.1 take prompts in.
    assert state["tokens_per_second"] == 12.3
    assert state["queue"] == 6
    assert state["temperature"] == 61.3
    assert state["memory_available"] == 3 * 3072
    assert (state["load"], state["devices"], state["replicas"]) == (37, 4, 2)
    assert (state["model"], state["plan"], state["problem"]) == ("tiny", 1, "none")


def test_a_fog_says_whether_it_serves_wholly_partly_or_not() -> None:
    whole = fog()
    lost = DeviceStatus(state=DeviceState.LOST, session=1)
    part = whole.with_status("a", lost, 1.0)
    none = part.with_status("c", lost, 1.0)

    states = [shown(view)["fog"].state["state"] for view in (whole, part, none, FogView())]

    assert states == ["ready", "degraded", "waiting", "waiting"]


def test_a_fog_tells_what_stands_in_its_way() -> None:
    waiting = Readiness(False, "no device is connected", None, {})
    lost = PlannerStatus(state=DeviceState.LOST, session=1)

    assert shown(FogView(), waiting)["fog"].state["problem"] == "no device is connected"
    assert shown(fog().with_planner(lost))["fog"].state["problem"] == "the planner is not running"


def test_a_text_that_is_too_long_for_a_state_is_cut() -> None:
    problem = Readiness(False, "x" * 400, None, {})

    text = shown(FogView(), problem)["fog"].state["problem"]

    assert isinstance(text, str)
    assert len(text) == 255
    assert text.endswith("\u2026")


def test_a_gateway_tells_its_own_requests_as_a_part_of_the_fog() -> None:
    found = shown(fog())

    assert found["gateway-1"].state == {"waiting": 3, "running": 2}
    devices = [described(found[name])["device"]["identifiers"] for name in ("fog", "gateway-1")]
    assert devices[0] == devices[1]
    names = {c["name"] for c in described(found["gateway-1"])["components"].values()}
    assert names == {"gateway-1: Requests waiting", "gateway-1: Requests running"}


def test_two_gateways_say_the_same_of_devices() -> None:
    other = replace(SHOWN, gateway="gateway-2", url="http://other:8080")

    first, second = shown(fog()), shown(fog(), by=other)

    for device in ("a", "b.1", "c", "idle"):
        assert first[device].discovery == second[device].discovery
        assert first[device].state == second[device].state


def test_a_gateway_leaves_the_entities_of_another_one_alone() -> None:
    other = shown(fog(), by=replace(SHOWN, gateway="gateway-2"))["gateway-2"]

    assert is_of_another_gateway(SHOWN, other.discovery_topic)
    assert not is_of_another_gateway(SHOWN, shown(fog())["gateway-1"].discovery_topic)
    assert not is_of_another_gateway(SHOWN, shown(fog())["a"].discovery_topic)


def test_an_agent_that_only_reports_is_no_device() -> None:
    view = FogView().with_telemetry("thermometer", Reading(HOT), 0.0)

    facts: FogFacts = fog_facts(view, READY)

    assert facts.devices == ()


def test_different_names_have_different_ids_in_the_letters_that_are_allowed() -> None:
    names = ["node-1", "node_1", "node.1", "node@1", "node_2e_1", "café", "cafe"]

    ids = [home_id(name) for name in names]

    assert len(set(ids)) == len(names)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]+", each) for each in ids)
    assert ids[0] == "node-1"
    assert home_discovery("ha", "my site", ids[0]) == "ha/device/e2llm-my_20_site/node-1/config"


@pytest.mark.parametrize(
    "prefix", ["", "#", "a/+/b", "a b", "e2llm", "e2llm/v1", "x\ntopic read #"]
)
def test_a_prefix_that_would_be_no_place_for_discovery_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="cannot be the prefix"):
        check_home_prefix(prefix)


def test_a_prefix_may_have_several_levels() -> None:
    assert check_home_prefix("home/assistant") == "home/assistant"
