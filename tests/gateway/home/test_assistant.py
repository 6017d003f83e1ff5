"""A fog in Home Assistant: entities appear, go with their device, and carry out what is asked."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from broker.codec import encode_control
from broker.control import Control, DeviceControl, DeviceState, DeviceStatus, Placement
from broker.credentials import HOME_ASSISTANT_USER
from broker.memory import MemoryBroker, MemoryTransport
from broker.mqtt import MqttTransport
from broker.plan import PlannerStatus
from broker.topics import (
    DEVICE_CONTROL,
    DEVICE_STATUS,
    DEVICE_TELEMETRY,
    HOME_CORDON,
    HOME_PREFIX,
    PLAN,
    PLANNER_STATUS,
    QoS,
    Topic,
    home_discovery,
)
from broker.transport import Connected, Publication, Transport
from gateway.engine import FogEngine
from gateway.home.assistant import ECHO_SECONDS, SETTLE_SECONDS, HomeAssistant, home_assistant
from gateway.home.entities import DEVICE_ENTITIES, FOG_ENTITIES, GATEWAY_ENTITIES
from gateway.home.remembrance import Remembrance
from gateway.home.things import EXPIRE_SECONDS, Shown
from gateway.settings import Settings
from planner.live.events import event_of
from planner.live.knowledge import Knowledge
from tests.gateway.scripted_fog import plan, replica
from tests.support.bus import SITE, BrokerProcess, running_broker, wait_for
from tests.support.gateway_process import WAIT_SECONDS, environ_for, gateway
from tests.support.home_assistant import UNAVAILABLE, UNKNOWN
from tests.support.home_assistant import HomeAssistant as Seen

PATIENCE_SECONDS = 20
DEVICES = ("a", "b")
ALWAYS = {entity.key for entity in DEVICE_ENTITIES if not entity.is_optional}


def entity(device: str, key: str) -> str:
    return f"e2llm-{SITE}-device-{device}-{key}"


@dataclass
class House:
    """A gateway that shows two devices in Home Assistant, on a memory broker.

    Attributes:
        now: What the gateway's clock says.
    """

    folder: Path
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    now: float = 1000.0
    running: list[HomeAssistant] = field(default_factory=list)
    devices: dict[str, MemoryTransport] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.planner = self.client("planner")
        self.say(PLAN, plan(replica("r", DEVICES)))
        self.say(PLANNER_STATUS, PlannerStatus(state=DeviceState.READY, session=1))
        for device in DEVICES:
            self.join(device)
        self.engine = FogEngine(MemoryTransport(self.broker, "gateway-1"), SITE, "gateway-1")
        self.seen = Seen(self.client("home-assistant"))

    def client(self, name: str) -> MemoryTransport:
        transport = MemoryTransport(self.broker, name)
        transport.connect()
        return transport

    def say(self, topic: Topic[Any], message: Control, **names: str) -> None:
        path = topic.path(SITE, **names)
        payload = encode_control(message)
        self.planner.publish(Publication(path, payload, topic.qos, topic.retained))

    def join(self, device: str) -> None:
        """Let a device say that it is there; its will says that it is lost."""
        topic = DEVICE_STATUS.path(SITE, device=device)
        words = [
            Publication(topic, encode_control(DeviceStatus(state=state, session=1)), retained=True)
            for state in (DeviceState.LOST, DeviceState.READY)
        ]
        transport = MemoryTransport(self.broker, device, will=words[0])
        transport.connect()
        transport.publish(words[1])
        self.devices[device] = transport

    def report(self, device: str, **values: float) -> None:
        """Let a device report."""
        payload = str(values).replace("'", '"').encode()
        path = DEVICE_TELEMETRY.path(SITE, device=device)
        self.devices[device].publish(Publication(path, payload))

    def remove(self, device: str) -> None:
        """Clear what a device has said, so that it is gone for good."""
        path = DEVICE_STATUS.path(SITE, device=device)
        self.planner.publish(Publication(path, b"", QoS.AT_LEAST_ONCE, retained=True))

    async def begin(
        self, *, is_on: bool = True, gateway: str = "gateway-1", connect: bool = True
    ) -> HomeAssistant:
        """Start what shows the fog."""
        transport = MemoryTransport(self.broker, f"{gateway}~home")
        home = HomeAssistant(
            transport,
            self.engine,
            Shown(SITE, HOME_PREFIX, gateway, "http://fog:8080", "e2llm test"),
            Remembrance(self.folder / gateway),
            is_on=is_on,
            clock=lambda: self.now,
            utc=lambda: 1.8e9 + self.now,
        )
        home.start()
        if connect:
            transport.connect()
        self.running.append(home)
        return home

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until Home Assistant shows something; time passes for gateways."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                await self.look()
        assert self.seen.complaints == []

    async def look(self) -> None:
        """Let every gateway take in what has come, and publish."""
        await asyncio.sleep(0.005)
        for home in self.running:
            home.look()

    async def shows(self, **expected: str) -> None:
        """Wait until device a has these states."""
        await self.until(
            lambda: (
                expected.items()
                <= {
                    key: self.seen.states().get(entity("a", key), "absent") for key in expected
                }.items()
            )
        )

    @property
    def retained(self) -> list[str]:
        """The topics of Home Assistant that have something retained."""
        return [topic for topic in self.broker.retained if topic.startswith(f"{HOME_PREFIX}/")]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path)
    await house.engine.start()
    transport = house.engine._transport
    assert isinstance(transport, MemoryTransport)
    transport.connect()
    yield house
    for home in house.running:
        await home.stop()
    await house.engine.stop()


async def test_every_entity_of_the_list_appears(house: House) -> None:
    house.report("a", temperature_celsius=50.5, battery_ratio=0.5, cpu_load_ratio=0.25)
    await house.begin()

    await house.shows(temperature="50.5", battery="50", load="25", state="ready", cordon="off")

    every = {entity.key for entity in DEVICE_ENTITIES}
    assert {e for e in house.seen.ever if "device-a" in e} == {entity("a", key) for key in every}
    assert {e for e in house.seen.ever if "device-b" in e} == {entity("b", key) for key in ALWAYS}
    fog = {f"e2llm-{SITE}-fog-{e.key}" for e in FOG_ENTITIES}
    own = {f"e2llm-{SITE}-gateway-gateway-1-{e.key}" for e in GATEWAY_ENTITIES}
    assert fog | own <= house.seen.ever
    assert house.seen.states()[f"e2llm-{SITE}-fog-state"] == "ready"
    assert house.seen.states()[entity("b", "load")] == UNKNOWN


async def test_a_device_that_dies_is_unavailable_with_no_gateway_between(house: House) -> None:
    home = await house.begin()
    await house.shows(state="ready", role="both", layers="0-2")
    await home.stop()
    house.running.clear()

    house.devices["a"].drop()

    states = house.seen.states("a")
    assert states.pop(entity("a", "state")) == "lost"
    assert set(states.values()) == {UNAVAILABLE}
    assert UNAVAILABLE not in house.seen.states("b").values()


async def test_a_device_that_comes_back_is_available_again(house: House) -> None:
    await house.begin()
    await house.shows(state="ready", role="both")
    house.devices["a"].drop()
    await house.shows(state="lost", role=UNAVAILABLE)

    house.join("a")

    await house.shows(state="ready", role="both")


async def test_a_device_that_was_removed_disappears(house: House) -> None:
    await house.begin()
    await house.shows(state="ready")

    house.remove("a")

    await house.until(lambda: not house.seen.states("a"))
    assert house.seen.states("b")
    assert not any("device-a" in topic for topic in house.retained)
    assert f"e2llm/v1/{SITE}/home-assistant/devices/a" not in house.broker.retained


async def test_the_switch_cordons_for_the_planner_and_shows_that_it_did(house: House) -> None:
    await house.begin()
    await house.shows(cordon="off", placement="open")
    planner = Knowledge()

    for is_on, placement in ((True, "cordoned"), (False, "open")):
        house.seen.switch(entity("a", "cordon"), is_on)
        await house.shows(cordon="on" if is_on else "off", placement=placement)
        topic = DEVICE_CONTROL.path(SITE, device="a")
        asked = event_of(topic, house.broker.retained[topic])
        assert asked is not None
        planner.hear(asked, 0.0)
        assert planner.cordoned() == ({"a"} if is_on else set())


async def test_switching_a_cordon_on_does_not_end_a_drain(house: House) -> None:
    house.say(DEVICE_CONTROL, DeviceControl(placement=Placement.DRAINING, at=1.0), device="a")
    await house.begin()
    await house.shows(cordon="on", placement="draining")

    house.seen.switch(entity("a", "cordon"), True)
    house.seen.switch(entity("b", "cordon"), True)
    await house.until(lambda: house.seen.states()[entity("b", "cordon")] == "on")

    assert house.seen.states()[entity("a", "placement")] == "draining"


@pytest.mark.parametrize(
    ("device", "payload", "retained"),
    [("a", b"ON", True), ("a", b"on please", False), ("a", b"\xff", False), ("z", b"ON", False)],
)
async def test_what_is_no_switch_of_a_device_changes_nothing(
    house: House, device: str, payload: bytes, retained: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = HOME_CORDON.path(SITE, device=device)
    if retained:
        house.planner.publish(Publication(path, payload, QoS.AT_LEAST_ONCE, retained=True))
    await house.begin()
    await house.shows(cordon="off")
    if not retained:
        house.planner.publish(Publication(path, payload, QoS.AT_LEAST_ONCE))

    await house.until(lambda: path in caplog.text or "no device z" in caplog.text)

    assert not any(topic.endswith("/control") for topic in house.broker.retained)


async def test_everything_is_said_again_when_home_assistant_says_that_it_started(
    house: House,
) -> None:
    await house.begin()
    await house.shows(state="ready")
    # A broker that was cleared, or a Home Assistant that keeps nothing.
    for topic in house.retained:
        del house.broker._retained[topic]
    house.seen = Seen(house.client("home-assistant-2"))
    house.seen.say("offline")
    await house.look()
    assert house.seen.states() == {}

    house.seen.say("online")

    await house.shows(state="ready", role="both", cordon="off")


async def test_switched_off_it_takes_back_what_it_showed(house: House) -> None:
    first = await house.begin()
    await house.shows(state="ready")
    await first.stop()
    house.running.clear()
    assert house.retained

    second = await house.begin(is_on=False)

    await house.until(lambda: not house.seen.states())
    await second.stop()
    house.running.clear()
    assert house.retained == []
    assert not any("/home-assistant/" in topic for topic in house.broker.retained)
    assert Remembrance(house.folder / "gateway-1").recall() is None


async def test_switched_off_it_tells_a_home_assistant_that_comes_later(house: House) -> None:
    first = await house.begin()
    await house.shows(state="ready")
    await first.stop()
    house.running.clear()
    # It has its entities, and is away while they are taken back.
    house.seen.transport.drop()  # type: ignore[attr-defined]
    await house.begin(is_on=False)
    await house.until(lambda: not house.retained)
    house.seen.transport.connect()  # type: ignore[attr-defined]
    assert house.seen.states()

    house.seen.say("online")

    await house.until(lambda: not house.seen.states())


async def test_a_device_that_went_while_no_gateway_ran_is_taken_back_after_a_while(
    house: House,
) -> None:
    first = await house.begin()
    await house.shows(state="ready")
    await first.stop()
    house.running.clear()
    house.remove("a")

    await house.begin()
    await house.until(lambda: "a" not in house.engine.view.devices)
    await house.look()
    assert house.seen.states("a")
    house.now += SETTLE_SECONDS

    await house.until(lambda: not house.seen.states("a"))
    assert house.seen.states("b")


async def test_of_two_gateways_one_may_be_switched_off(house: House) -> None:
    await house.begin()
    other = await house.begin(gateway="gateway-2")
    requests = f"e2llm-{SITE}-gateway-gateway-2-running"
    await house.until(lambda: requests in house.seen.states())
    await other.stop()
    house.running.remove(other)

    await house.begin(gateway="gateway-2", is_on=False)

    await house.until(lambda: requests not in house.seen.states())
    await house.shows(state="ready", role="both")
    await house.until(
        lambda: (
            home_discovery(HOME_PREFIX, SITE, "gateway-gateway-1") in house.broker.retained
            and home_discovery(HOME_PREFIX, SITE, "fog") in house.broker.retained
        )
    )


async def test_figures_expire_when_no_gateway_says_them_any_more(house: House) -> None:
    home = await house.begin()
    await house.shows(state="ready", role="both")
    await home.stop()
    house.running.clear()

    house.seen.now += EXPIRE_SECONDS

    assert house.seen.states()[entity("a", "role")] == UNAVAILABLE
    assert house.seen.states()[entity("a", "state")] == "ready"


async def test_a_broker_that_does_not_let_it_write_is_named_in_the_log(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver = house.broker.deliver

    def let_through(publication: Publication) -> None:
        if HOME_PREFIX not in publication.topic and "/home-assistant/" not in publication.topic:
            deliver(publication)

    monkeypatch.setattr(house.broker, "deliver", let_through)
    await house.begin()
    await house.look()
    await house.look()
    house.now += ECHO_SECONDS

    with caplog.at_level(logging.ERROR):
        await house.until(lambda: "--home-assistant homeassistant" in caplog.text)


def test_a_gateway_refuses_a_prefix_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"home_assistant: .* cannot be the prefix"):
        Settings(broker="mqtt://localhost", model="m", state=tmp_path, home_assistant="e2llm/v1")


def test_a_remembrance_that_is_damaged_is_left_aside(tmp_path: Path) -> None:
    remembrance = Remembrance(tmp_path)
    remembrance.keep("homeassistant", ["b", "a"])
    known = remembrance.recall()
    assert known is not None
    assert (known.prefix, known.topics) == ("homeassistant", ["a", "b"])

    (tmp_path / "home-assistant.json").write_text("{")

    assert remembrance.recall() is None


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "amqtt"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrokerProcess]:
    if request.param == "mosquitto":
        request.getfixturevalue("mosquitto_path")
    with running_broker(
        request.param, tmp_path, nodes=["a"], gateways=["gateway-1"], home="ha/own"
    ) as broker:
        yield broker


async def test_a_real_broker_lets_it_through_and_reports_a_dead_device(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    clients: list[MqttTransport] = []

    def client(user: str, name: str, will: Publication | None = None) -> MqttTransport:
        clients.append(MqttTransport(broker.address(user), name, will=will))
        return clients[-1]

    topic = DEVICE_STATUS.path(SITE, device="a")
    lost, ready = (
        Publication(
            topic,
            encode_control(DeviceStatus(state=state, session=1)),
            QoS.AT_LEAST_ONCE,
            retained=True,
        )
        for state in (DeviceState.LOST, DeviceState.READY)
    )
    node = client("a", "a", lost)
    node.connect()
    wait_for(node, Connected)
    node.publish(ready)
    bus, own = client("gateway-1", "gateway-1"), client("gateway-1", "gateway-1~home")
    engine = FogEngine(bus, SITE, "gateway-1")
    shown = Shown(SITE, "ha/own", "gateway-1", "http://fog:8080", "test")
    home = HomeAssistant(own, engine, shown, Remembrance(tmp_path))
    watcher: Transport = client(HOME_ASSISTANT_USER, "home-assistant")
    seen = Seen(watcher, "ha/own")
    await engine.start()
    home.start()
    for each in (bus, own, clients[-1]):
        each.connect()

    async def until(key: str, state: str) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while seen.states().get(entity("a", key)) != state:
                await asyncio.sleep(0.02)

    try:
        await until("cordon", "off")
        await until("state", "ready")
        seen.switch(entity("a", "cordon"), True)
        await until("cordon", "on")
        controls = engine.view.devices["a"].control
        assert controls.placement is Placement.CORDONED
        node.drop()
        await until("state", "lost")
        await until("cordon", UNAVAILABLE)
        assert seen.complaints == []
    finally:
        await home.stop()
        await engine.stop()
        for each in clients:
            each.close()


async def test_a_process_shows_the_fog_and_the_next_one_takes_it_back_without_the_setting(
    folder: Path, tmp_path: Path, unused_tcp_port: int
) -> None:
    state, fog = tmp_path / "gateway", f"e2llm-{SITE}-fog-state"
    waiting = f"e2llm-{SITE}-gateway-gateway-1-waiting"

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while not condition():
                await asyncio.sleep(0.02)

    with running_broker("amqtt", tmp_path, gateways=["gateway-1"], home="ha/own") as broker:
        url = broker.address("gateway-1").url
        environ = environ_for(folder, state, unused_tcp_port, E2LLM_BROKER=url, E2LLM_SITE=SITE)
        watcher = MqttTransport(broker.address(HOME_ASSISTANT_USER), "home-assistant")
        seen = Seen(watcher, "ha/own")
        watcher.connect()
        with gateway({**environ, "E2LLM_GATEWAY_HOME_ASSISTANT": "ha/own"}):
            await until(lambda: seen.states().get(fog) == "waiting")
            await until(lambda: seen.states().get(waiting) == "0")
        # Killed, so its last will says that it is lost.
        await until(lambda: seen.states()[waiting] == UNAVAILABLE)
        settings = Settings(broker=url, model=str(folder), state=state, site=SITE)
        engine = FogEngine(MemoryTransport(MemoryBroker(), "gateway-1"), SITE, "gateway-1")

        found = home_assistant(settings, engine, "test")

        assert found is not None
        transport, home = found
        home.start()
        transport.connect()
        await until(lambda: not seen.states())
        await home.stop()
        assert home_assistant(settings, engine, "test") is None
        watcher.close()
        assert seen.complaints == []
