"""The guide to Node-RED: its flow asks what is answered, and its report is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from broker.access import Action, Kind, is_allowed
from broker.mqtt import MqttTransport
from broker.telemetry import FIELDS, Telemetry, parse_telemetry
from broker.topics import DEVICE_TELEMETRY, PLANNER_USER, PROMPT, REPLY
from broker.transport import Connected, Publication, Received
from tests.support.bus import SITE, running_broker, wait_for
from tests.support.documents import ROOT, blocks
from tests.support.prompts_site import Site

GUIDE = ROOT / "docs" / "guides" / "node-red.md"
SHOWN = [json.loads(block.text) for block in blocks(GUIDE, "json")]
FLOW: list[dict[str, Any]]
(FLOW,) = [shown for shown in SHOWN if isinstance(shown, list)]
REPORTS = [shown for shown in SHOWN if isinstance(shown, dict) and shown.keys() & FIELDS.keys()]
NODES: dict[str, dict[str, Any]] = {node["id"]: node for node in FLOW}


def of_type(kind: str) -> dict[str, Any]:
    (found,) = [node for node in FLOW if node["type"] == kind]
    return found


def test_every_wire_and_every_broker_of_the_flow_is_a_node() -> None:
    ends = [end for node in FLOW for wire in node.get("wires", ()) for end in wire]

    assert set(ends) <= NODES.keys()
    assert {NODES[node["broker"]]["type"] for node in FLOW if node["type"].startswith("mqtt ")} == {
        "mqtt-broker"
    }


def test_the_flow_publishes_and_reads_where_its_user_may() -> None:
    out, back = of_type("mqtt out"), of_type("mqtt in")

    assert PROMPT.match(out["topic"]) == {"site": "local", "client": "app"}
    assert (int(out["qos"]), out["retain"]) == (PROMPT.qos, "false")
    assert is_allowed("app", Kind.CLIENT, Action.WRITE, out["topic"], "local")
    assert is_allowed("app", Kind.CLIENT, Action.READ, back["topic"], "local")
    reply = REPLY.path("local", client="app", request="q")
    assert reply.startswith(back["topic"].removesuffix("#"))


async def test_what_the_flow_asks_is_answered_where_it_looks(site: Site) -> None:
    (rule,) = of_type("change")["rules"]

    # The model of these tests has a short context.
    site.ask({**json.loads(rule["to"]), "max_tokens": 16})

    _, answer = await site.reply()
    assert answer["choices"][0]["message"]["content"] == "It is 12."


@pytest.mark.parametrize("report", REPORTS, ids=str)
def test_what_it_reports_is_read_whole(report: dict[str, Any]) -> None:
    for payload in (report, {"payload": report, "topic": "x", "_msgid": "1"}):
        assert parse_telemetry(json.dumps(payload)) == (Telemetry(**report), ())


def test_what_it_reports_gets_through_a_broker_under_the_name_of_the_device(
    tmp_path: Path,
) -> None:
    topic = DEVICE_TELEMETRY.path(SITE, device="pi")
    with running_broker("amqtt", tmp_path, nodes=["pi"]) as broker:
        planner = MqttTransport(broker.address(PLANNER_USER), PLANNER_USER)
        planner.subscribe([(topic, DEVICE_TELEMETRY.qos)])
        node_red = MqttTransport(broker.address("pi"), "node-red")
        for each in (planner, node_red):
            each.connect()
            wait_for(each, Connected)

        node_red.publish(Publication(topic, json.dumps(REPORTS[0]).encode()))

        assert parse_telemetry(wait_for(planner, Received).payload).refused == ()
        for each in (planner, node_red):
            each.close()
