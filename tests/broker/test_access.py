"""Who may do what: the table itself, and that both brokers hold it."""

import itertools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.access import (
    Action,
    Credential,
    Kind,
    generate_password,
    is_allowed,
    mosquitto_acl,
    mosquitto_password_line,
    rules,
)
from broker.mqtt import MqttTransport
from broker.topics import (
    ALL_TOPICS,
    DEVICE_ASSIGNMENT,
    DEVICE_CONTROL,
    DEVICE_LOADED,
    DEVICE_PROFILE,
    DEVICE_STATUS,
    DEVICE_TELEMETRY,
    DEVICE_TENSORS,
    GATEWAY_EVENTS,
    GATEWAY_STATUS,
    HOME_CORDON,
    HOME_DEVICE,
    HOME_FOG,
    HOME_GATEWAY,
    HOME_PREFIX,
    MODEL,
    PLAN,
    PLAN_HISTORY,
    PLANNER_STATUS,
    PLANNER_USER,
    PROMPT,
    REPLY,
    STAGE_CREDIT,
    STAGE_KV,
    STAGE_WORK,
    WHAT_IF,
    WHAT_IF_ANSWER,
    QoS,
    home_birth,
    home_discovery,
    node_inbox,
)
from broker.transport import Connected, Publication, Received
from tests.support.bus import PATIENCE_SECONDS, SITE, BrokerProcess, wait_for

KINDS = {
    PLANNER_USER: Kind.PLANNER,
    "gateway-1": Kind.GATEWAY,
    "node-1": Kind.NODE,
    "node-2": Kind.NODE,
    "client-1": Kind.CLIENT,
    "home-assistant": Kind.HOME_ASSISTANT,
}
_numbers = itertools.count()


def may(user: str, action: Action, topic: str) -> bool:
    return is_allowed(user, KINDS[user], action, topic, SITE, HOME_PREFIX)


def work(receiver: str, sender: str) -> str:
    return STAGE_WORK.path(SITE, replica="r", stage=0, device=receiver, sender=sender)


# What each message needs on its way: (topic, its writer, its reader). Every topic is here.
ROUTES = [
    (MODEL.path(SITE, model="m"), "gateway-1", "node-1"),
    (DEVICE_STATUS.path(SITE, device="node-1"), "node-1", "gateway-1"),
    (DEVICE_STATUS.path(SITE, device="node-1"), "node-1", "node-1"),
    (DEVICE_PROFILE.path(SITE, device="node-1"), "node-1", PLANNER_USER),
    (DEVICE_ASSIGNMENT.path(SITE, device="node-1"), PLANNER_USER, "node-1"),
    (DEVICE_CONTROL.path(SITE, device="node-1"), "gateway-1", PLANNER_USER),
    (DEVICE_CONTROL.path(SITE, device="node-1"), "gateway-1", "gateway-1"),
    (DEVICE_LOADED.path(SITE, device="node-1"), "node-1", PLANNER_USER),
    (DEVICE_TENSORS.path(SITE, device="node-1"), "node-1", "node-2"),
    (PLAN.path(SITE), PLANNER_USER, "node-1"),
    (PLAN.path(SITE), PLANNER_USER, "gateway-1"),
    (PLAN.path(SITE), PLANNER_USER, PLANNER_USER),
    (PLAN_HISTORY.path(SITE), PLANNER_USER, "gateway-1"),
    (PLAN_HISTORY.path(SITE), PLANNER_USER, PLANNER_USER),
    (PLANNER_STATUS.path(SITE), PLANNER_USER, "gateway-1"),
    (GATEWAY_STATUS.path(SITE, gateway="gateway-1"), "gateway-1", "node-1"),
    (WHAT_IF.path(SITE, gateway="gateway-1"), "gateway-1", PLANNER_USER),
    (WHAT_IF_ANSWER.path(SITE, gateway="gateway-1"), PLANNER_USER, "gateway-1"),
    (DEVICE_TELEMETRY.path(SITE, device="node-1"), "node-1", PLANNER_USER),
    (DEVICE_TELEMETRY.path(SITE, device="client-1"), "client-1", PLANNER_USER),
    (work("node-1", "node-2"), "node-2", "node-1"),
    (work("node-1", "gateway-1"), "gateway-1", "node-1"),
    (
        STAGE_KV.path(SITE, replica="r", stage=0, device="node-1", sender="node-2"),
        "node-2",
        "node-1",
    ),
    (
        STAGE_CREDIT.path(SITE, replica="r", stage=0, device="node-1", sender="node-2"),
        "node-2",
        "node-1",
    ),
    (
        GATEWAY_EVENTS.path(SITE, gateway="gateway-1", sender="node-1"),
        "node-1",
        "gateway-1",
    ),
    (PROMPT.path(SITE, client="client-1"), "client-1", "gateway-1"),
    (REPLY.path(SITE, client="client-1", request="q"), "gateway-1", "client-1"),
    (HOME_FOG.path(SITE), "gateway-1", "home-assistant"),
    (HOME_DEVICE.path(SITE, device="node-1"), "gateway-1", "home-assistant"),
    (HOME_GATEWAY.path(SITE, gateway="gateway-1"), "gateway-1", "home-assistant"),
    (HOME_CORDON.path(SITE, device="node-1"), "home-assistant", "gateway-1"),
    (home_discovery(HOME_PREFIX, SITE, "fog"), "gateway-1", "home-assistant"),
    (home_discovery(HOME_PREFIX, SITE, "fog"), "gateway-1", "gateway-1"),
    (home_birth(HOME_PREFIX), "home-assistant", "gateway-1"),
    (DEVICE_STATUS.path(SITE, device="node-1"), "node-1", "home-assistant"),
    (GATEWAY_STATUS.path(SITE, gateway="gateway-1"), "gateway-1", "home-assistant"),
]

FORBIDDEN_WRITES = [
    ("node-1", PLAN.path(SITE)),
    ("node-1", PLANNER_STATUS.path(SITE)),
    ("node-1", DEVICE_ASSIGNMENT.path(SITE, device="node-1")),
    ("node-1", DEVICE_CONTROL.path(SITE, device="node-1")),
    ("node-1", DEVICE_STATUS.path(SITE, device="node-2")),
    ("node-1", DEVICE_TELEMETRY.path(SITE, device="node-2")),
    ("node-1", DEVICE_TENSORS.path(SITE, device="node-2")),
    ("node-1", work("node-2", "gateway-1")),
    ("node-1", work("node-2", "node-2")),
    ("node-1", GATEWAY_EVENTS.path(SITE, gateway="gateway-1", sender="node-2")),
    ("node-1", MODEL.path(SITE, model="m")),
    ("node-1", PLAN.path("another-site")),
    ("gateway-1", PLAN.path(SITE)),
    ("gateway-1", PLAN_HISTORY.path(SITE)),
    ("gateway-1", GATEWAY_STATUS.path(SITE, gateway="gateway-2")),
    ("gateway-1", WHAT_IF.path(SITE, gateway="gateway-2")),
    ("node-1", WHAT_IF.path(SITE, gateway="node-1")),
    ("client-1", WHAT_IF.path(SITE, gateway="client-1")),
    ("gateway-1", work("node-1", "node-2")),
    ("client-1", work("node-1", "client-1")),
    ("client-1", PROMPT.path(SITE, client="client-2")),
    ("client-1", DEVICE_STATUS.path(SITE, device="client-1")),
    ("client-1", REPLY.path(SITE, client="client-1", request="q")),
    ("gateway-1", home_discovery(HOME_PREFIX, "another-site", "fog")),
    ("gateway-1", f"{HOME_PREFIX}/light/porch/config"),
    ("gateway-1", home_birth(HOME_PREFIX)),
    ("node-1", home_discovery(HOME_PREFIX, SITE, "fog")),
    ("home-assistant", home_discovery(HOME_PREFIX, SITE, "fog")),
    ("home-assistant", HOME_DEVICE.path(SITE, device="node-1")),
    ("home-assistant", DEVICE_CONTROL.path(SITE, device="node-1")),
    ("home-assistant", DEVICE_TELEMETRY.path(SITE, device="home-assistant")),
    ("home-assistant", PROMPT.path(SITE, client="home-assistant")),
    ("client-1", HOME_CORDON.path(SITE, device="node-1")),
    (PLANNER_USER, work("node-1", PLANNER_USER)),
    (PLANNER_USER, DEVICE_TELEMETRY.path(SITE, device="node-1")),
]

FORBIDDEN_READS = [
    ("node-1", node_inbox(SITE, "node-2")),
    ("node-1", STAGE_WORK.filter(SITE)),
    ("node-1", "#"),
    ("node-1", PROMPT.filter(SITE)),
    ("node-1", DEVICE_ASSIGNMENT.path(SITE, device="node-2")),
    ("gateway-1", GATEWAY_EVENTS.filter(SITE, gateway="gateway-2")),
    ("gateway-1", WHAT_IF_ANSWER.path(SITE, gateway="gateway-2")),
    ("gateway-1", node_inbox(SITE, "node-1")),
    ("client-1", REPLY.filter(SITE, client="client-2")),
    ("client-1", REPLY.filter(SITE)),
    ("client-1", PLAN.path(SITE)),
    ("home-assistant", PROMPT.filter(SITE)),
    ("home-assistant", REPLY.filter(SITE)),
    ("home-assistant", "#"),
    ("client-1", HOME_FOG.path(SITE)),
    (PLANNER_USER, PROMPT.filter(SITE)),
]


def test_every_topic_has_a_writer_and_a_reader() -> None:
    for topic in ALL_TOPICS:
        assert any(topic.match(path) for path, _writer, _reader in ROUTES), topic.template
    for path, writer, reader in ROUTES:
        assert may(writer, Action.WRITE, path), (writer, path)
        assert may(reader, Action.READ, path), (reader, path)


@pytest.mark.parametrize(("user", "topic"), FORBIDDEN_WRITES)
def test_nobody_writes_under_another_name_or_beyond_its_kind(user: str, topic: str) -> None:
    assert not may(user, Action.WRITE, topic)


@pytest.mark.parametrize(("user", "topic"), FORBIDDEN_READS)
def test_nobody_reads_what_is_meant_for_others(user: str, topic: str) -> None:
    assert not may(user, Action.READ, topic)


@pytest.mark.parametrize("user", ["gateway-1", "home-assistant"])
def test_where_the_fog_is_not_shown_in_home_assistant_nobody_has_rights_for_it(user: str) -> None:
    for topic in (HOME_FOG, HOME_DEVICE, HOME_GATEWAY, HOME_CORDON):
        for action in Action:
            assert not is_allowed(user, KINDS[user], action, topic.filter(SITE), SITE)
    kinds = {rule.kind for rule in rules(SITE)}
    assert Kind.HOME_ASSISTANT not in kinds
    assert not any(HOME_PREFIX in rule.filter for rule in rules(SITE))


def test_only_the_planner_writes_plan_and_assignments() -> None:
    for path in (PLAN.path(SITE), DEVICE_ASSIGNMENT.path(SITE, device="node-1")):
        assert [user for user in KINDS if may(user, Action.WRITE, path)] == [PLANNER_USER]


def test_a_node_may_make_its_one_subscription() -> None:
    assert may("node-1", Action.READ, node_inbox(SITE, "node-1"))


def test_a_name_that_begins_like_another_has_no_part_in_its_rights() -> None:
    assert not may("node-1", Action.WRITE, DEVICE_STATUS.path(SITE, device="node-10"))


@pytest.mark.parametrize("user", ["", "a b", "a:b", "a/b", "+", "#", "a\nuser planner", "%u", "-a"])
def test_a_user_name_that_could_mean_more_is_refused(user: str) -> None:
    with pytest.raises(ValueError, match=r"user name|MQTT topic"):
        Credential(user, "password", Kind.NODE)


@pytest.mark.parametrize(("user", "kind"), [("planner", Kind.NODE), ("node-1", Kind.PLANNER)])
def test_only_the_planner_is_called_planner(user: str, kind: Kind) -> None:
    with pytest.raises(ValueError, match="only the planner"):
        Credential(user, "password", kind)


def test_passwords_are_long_random_and_hidden() -> None:
    first, second = generate_password(), generate_password()

    assert first != second
    assert len(first) >= 32
    assert first not in repr(Credential("node-1", first, Kind.NODE))


def test_a_password_line_is_what_mosquitto_passwd_writes() -> None:
    # Written by mosquitto_passwd 2.0.11 -b for bob with the password "secret".
    expected = (
        "bob:$7$101$zealH82EqZLaxUJP$Fj/UEgMPuKrXTNWlCNC6eRO56HUiOYw9Wz8iEiI3R7v13e0f"
        "GcXIfCVZ/IZcP6Xei+wDLe3Nqn24FyCtuqfFbg=="
    )
    salt = bytes.fromhex("cde6a51fcd84a992dac5424f")

    assert mosquitto_password_line(Credential("bob", "secret", Kind.NODE), salt) == expected
    assert "secret" not in mosquitto_password_line(Credential("bob", "secret", Kind.NODE))


def test_the_acl_file_says_of_each_user_what_the_table_says_of_its_kind() -> None:
    credentials = [Credential(user, "x", kind) for user, kind in KINDS.items()]

    blocks = mosquitto_acl(SITE, credentials, HOME_PREFIX).split("\nuser ")[1:]

    by_user = {block.splitlines()[0]: block.splitlines()[1:] for block in blocks}
    assert set(by_user) == set(KINDS)
    for user, kind in KINDS.items():
        lines = {line for line in by_user[user] if line.startswith("topic")}
        assert lines == {
            f"topic {rule.action} {rule.filter.replace('%u', user)}"
            for rule in rules(SITE, HOME_PREFIX)
            if rule.kind is kind
        }


class Fog:
    """Connected clients of one broker."""

    def __init__(self, broker: BrokerProcess) -> None:
        self.broker = broker
        self.clients: list[MqttTransport] = []

    def client(self, user: str, *filters: str) -> MqttTransport:
        client = MqttTransport(self.broker.address(user), f"{user}-{next(_numbers)}")
        self.clients.append(client)
        client.subscribe([(text, QoS.AT_LEAST_ONCE) for text in filters])
        client.connect()
        wait_for(client, Connected)
        return client


@pytest.fixture
def fog(any_broker: BrokerProcess) -> Iterator[Fog]:
    fog = Fog(any_broker)
    yield fog
    for client in fog.clients:
        client.close()


@pytest.mark.parametrize(("topic", "writer", "reader"), ROUTES)
def test_both_brokers_let_through_what_is_allowed(
    fog: Fog, topic: str, writer: str, reader: str
) -> None:
    receiver = fog.client(reader, topic)

    fog.client(writer).publish(Publication(topic, b"allowed", QoS.AT_LEAST_ONCE))

    assert wait_for(receiver, Received).payload == b"allowed"


# Those for whom an ordinary reader exists that would see the forged message.
@pytest.mark.parametrize(
    ("forger", "topic", "witness"),
    [
        ("node-1", PLAN.path(SITE), "gateway-1"),
        ("node-1", DEVICE_ASSIGNMENT.path(SITE, device="node-2"), "node-2"),
        ("node-1", DEVICE_STATUS.path(SITE, device="node-2"), PLANNER_USER),
        ("node-1", work("node-2", "gateway-1"), "node-2"),
        ("node-1", work("node-2", "node-2"), "node-2"),
        (
            "node-1",
            GATEWAY_EVENTS.path(SITE, gateway="gateway-1", sender="node-2"),
            "gateway-1",
        ),
        ("gateway-1", PLAN.path(SITE), "node-1"),
        ("gateway-1", home_discovery(HOME_PREFIX, "another-site", "fog"), "home-assistant"),
        ("client-1", work("node-1", "client-1"), "node-1"),
        ("client-1", HOME_CORDON.path(SITE, device="node-1"), "gateway-1"),
        ("client-1", PROMPT.path(SITE, client="client-2"), "gateway-1"),
    ],
)
def test_both_brokers_stop_a_forged_message(
    fog: Fog, forger: str, topic: str, witness: str
) -> None:
    # A broker takes the messages of one client in their order: when the one that is allowed
    # has arrived, the forged one is not coming any more.
    allowed = {
        "node-1": DEVICE_TELEMETRY.path(SITE, device="node-1"),
        "gateway-1": GATEWAY_STATUS.path(SITE, gateway="gateway-1"),
        "client-1": DEVICE_TELEMETRY.path(SITE, device="client-1"),
    }[forger]
    receiver, planner = fog.client(witness, topic), fog.client(PLANNER_USER, allowed)
    sender = fog.client(forger)

    sender.publish(Publication(topic, b"forged", QoS.AT_LEAST_ONCE))
    sender.publish(Publication(allowed, b"allowed", QoS.AT_LEAST_ONCE))

    assert wait_for(planner, Received).payload == b"allowed"
    assert receiver.receive(0.05) is None


def test_both_brokers_keep_a_foreign_inbox_closed(fog: Fog) -> None:
    spy = fog.client("node-2", node_inbox(SITE, "node-1"), "#", node_inbox(SITE, "node-2"))
    owner = fog.client("node-1", node_inbox(SITE, "node-1"))
    gateway = fog.client("gateway-1")

    gateway.publish(Publication(work("node-1", "gateway-1"), b"for node-1"))
    gateway.publish(Publication(work("node-2", "gateway-1"), b"for node-2"))

    assert wait_for(owner, Received).payload == b"for node-1"
    # More than once, since two of its filters match.
    seen = [wait_for(spy, Received).payload]
    while isinstance(event := spy.receive(0.05), Received):
        seen.append(event.payload)
    assert set(seen) == {b"for node-2"}


def test_both_brokers_leave_a_client_alone_whose_place_another_user_wants(fog: Fog) -> None:
    topic = DEVICE_STATUS.path(SITE, device="node-1")
    victim = MqttTransport(fog.broker.address("node-1"), "node-1")
    fog.clients.append(victim)
    victim.subscribe([(topic, QoS.AT_LEAST_ONCE)])
    victim.connect()
    wait_for(victim, Connected)

    thief = MqttTransport(fog.broker.address("node-2"), "node-1")
    fog.clients.append(thief)
    thief.connect()
    wait_for(thief, Connected)

    fog.client(PLANNER_USER).publish(Publication(topic, b"for node-1", QoS.AT_LEAST_ONCE))
    # Not `Disconnected`, which would have come first.
    assert victim.receive(PATIENCE_SECONDS) == Received(topic, b"for node-1")


@pytest.mark.mosquitto
def test_mosquitto_passwd_accepts_our_password_file(mosquitto_path: Path, tmp_path: Path) -> None:
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("mosquitto_passwd is not installed")
    path = tmp_path / "passwords"
    lines = [mosquitto_password_line(Credential(user, "x", kind)) for user, kind in KINDS.items()]
    path.write_text("\n".join(lines) + "\n", "utf-8")

    subprocess.run([tool, "-D", path, "node-1"], check=True, capture_output=True)

    assert path.read_text("utf-8").splitlines() == [
        line for line in lines if not line.startswith("node-1:")
    ]
