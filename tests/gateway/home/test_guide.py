"""The guide to Home Assistant is true: its tables, its automation, and the bridge that it shows."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.address import BrokerAddress
from broker.credentials import HOME_ASSISTANT_USER
from broker.mqtt import MqttTransport
from broker.topics import (
    DEVICE_STATUS,
    HOME_CORDON,
    HOME_DEVICE,
    HOME_PREFIX,
    QoS,
    home_birth,
    home_discovery,
)
from broker.transport import Publication, Received
from gateway.home.announcements import REPEAT_SECONDS, STATE_SECONDS
from gateway.home.entities import DEVICE_ENTITIES, FOG_ENTITIES, GATEWAY_ENTITIES, Entity
from gateway.home.things import EXPIRE_SECONDS
from tests.support.bus import PATIENCE_SECONDS, SITE, BrokerProcess, free_port, running_broker
from tests.support.documents import ROOT, blocks

GUIDE = ROOT / "docs" / "guides" / "home-assistant.md"
TABLES = [
    re.findall(r"^\| ([^|]+?) \| [^|]+ \|$", part, re.MULTILINE)[1:]
    for part in GUIDE.read_text("utf-8").split("| entity | shows |\n")[1:]
]


@pytest.mark.parametrize(
    ("table", "entities"),
    list(zip(TABLES, (DEVICE_ENTITIES, FOG_ENTITIES, GATEWAY_ENTITIES), strict=True)),
    ids=["device", "fog", "gateway"],
)
def test_a_table_of_the_guide_names_every_entity(
    table: list[str], entities: Sequence[Entity[Any]]
) -> None:
    assert table == [entity.name for entity in entities]


def test_the_guide_says_how_often_figures_come() -> None:
    text = " ".join(GUIDE.read_text("utf-8").split())

    assert f"every {STATE_SECONDS:g} s at most, and repeated every {REPEAT_SECONDS:g} s" in text
    assert f"they expire after {EXPIRE_SECONDS} s" in text


def test_the_automation_of_the_guide_is_yaml_with_the_switch_of_a_device() -> None:
    (block,) = blocks(GUIDE, "yaml")

    (automation,) = yaml.safe_load(block.text)["automation"]

    (action,) = automation["actions"]
    assert action["target"]["entity_id"] == "switch.laptop_cordon"


@contextmanager
def household_broker(binary: Path, folder: Path, fog: BrokerProcess) -> Iterator[BrokerAddress]:
    """Run a Mosquitto with the bridge of the guide."""
    (bridge,) = [block.text for block in blocks(GUIDE, "") if "connection e2llm" in block.text]
    password = fog.credentials[HOME_ASSISTANT_USER].password
    for written, real in (
        ("fog.lan:1883", f"127.0.0.1:{fog.port}"),
        ("SECRET", password),
        ("e2llm-local", f"e2llm-{SITE}"),
        ("v1/local/", f"v1/{SITE}/"),
    ):
        assert written in bridge
        bridge = bridge.replace(written, real)
    port = free_port()
    configuration = folder / "household.conf"
    configuration.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n{bridge}")
    with subprocess.Popen([binary, "-c", configuration], stderr=subprocess.DEVNULL) as process:
        try:
            yield BrokerAddress("127.0.0.1", port)
        finally:
            process.terminate()


@contextmanager
def connected(address: BrokerAddress, name: str, *filters: str) -> Iterator[MqttTransport]:
    transport = MqttTransport(address, name)
    transport.subscribe([(text, QoS.AT_LEAST_ONCE) for text in filters])
    transport.connect()
    try:
        yield transport
    finally:
        transport.close()


def until(
    receiver: MqttTransport, condition: Callable[[Received], bool], again: Callable[[], None]
) -> None:
    """Wait for a message; what brings it is done again until it comes: the bridge may be late."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        again()
        while (event := receiver.receive(0.2)) is not None:
            if isinstance(event, Received) and condition(event):
                return
    raise AssertionError("no such message came over the bridge")


def test_the_bridge_of_the_guide_brings_a_household_what_it_needs(
    mosquitto_path: Path, tmp_path: Path
) -> None:
    discovery = home_discovery(HOME_PREFIX, SITE, "fog")
    status = DEVICE_STATUS.path(SITE, device="a")
    state = HOME_DEVICE.path(SITE, device="a")
    cordon = HOME_CORDON.path(SITE, device="a")
    birth = home_birth(HOME_PREFIX)
    with (
        running_broker(
            "mosquitto", tmp_path, nodes=["a"], gateways=["gateway-1"], home=HOME_PREFIX
        ) as fog,
        household_broker(mosquitto_path, tmp_path, fog) as household,
        connected(fog.address("a"), "a") as node,
        connected(fog.address("gateway-1"), "gateway-1", cordon, birth) as gateway,
        connected(household, "assistant", discovery, status, state) as assistant,
    ):
        for sender, topic in ((gateway, discovery), (gateway, state), (node, status)):

            def publish(sender: MqttTransport = sender, topic: str = topic) -> None:
                sender.publish(Publication(topic, b"{}", QoS.AT_LEAST_ONCE, retained=True))

            def arrived(message: Received, topic: str = topic) -> bool:
                return message.topic == topic

            until(assistant, arrived, publish)
        for topic in (cordon, birth):

            def press(topic: str = topic) -> None:
                assistant.publish(Publication(topic, b"ON", QoS.AT_LEAST_ONCE))

            def heard(message: Received, topic: str = topic) -> bool:
                return message.topic == topic

            until(gateway, heard, press)
        # A Home Assistant that starts later finds what is retained.
        with connected(household, "later", discovery) as later:
            until(later, lambda message: message.retained, lambda: None)
