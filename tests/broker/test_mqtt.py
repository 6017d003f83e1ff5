"""What only the transport over a real network does: retry, fall back, give up, share a socket."""

import hashlib
import queue
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.address import BrokerAddress
from broker.mqtt import MqttTransport
from broker.topics import DEVICE_STATUS, PLAN, PLANNER_USER, QoS
from broker.transport import (
    Connected,
    Disconnected,
    Publication,
    Received,
    Refused,
    TransportEvent,
)
from tests.support.bus import (
    PATIENCE_SECONDS,
    SITE,
    BrokerProcess,
    free_port,
    running_broker,
    wait_for,
)

TOPIC = DEVICE_STATUS.path(SITE, device="under-test")


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.mosquitto), "amqtt"])
def own_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker that the test may stop."""
    if request.param == "mosquitto":
        request.getfixturevalue("mosquitto_path")
    with running_broker(request.param, tmp_path) as broker:
        yield broker


def test_after_a_restart_of_the_broker_clients_are_back_with_their_subscriptions(
    own_broker: BrokerProcess,
) -> None:
    client = MqttTransport(own_broker.address(PLANNER_USER), "client")
    client.subscribe([(TOPIC, QoS.AT_LEAST_ONCE)])
    client.connect()
    wait_for(client, Connected)

    own_broker.stop()
    wait_for(client, Disconnected)
    assert not client.is_connected
    client.publish(Publication(TOPIC, b"said while it was away", QoS.AT_LEAST_ONCE))
    own_broker.start()

    assert wait_for(client, Connected).client_id == "client"
    client.publish(Publication(TOPIC, b"said afterwards", QoS.AT_LEAST_ONCE))
    wait_for(client, Received, lambda event: event.payload == b"said afterwards")
    client.close()


def test_a_killed_broker_is_a_lost_connection_like_any_other(own_broker: BrokerProcess) -> None:
    client = MqttTransport(own_broker.address(PLANNER_USER), "client")
    client.connect()
    wait_for(client, Connected)

    own_broker.stop(signal.SIGKILL)

    wait_for(client, Disconnected)
    own_broker.start()
    wait_for(client, Connected)
    client.close()


def test_a_client_may_start_before_its_broker(tmp_path: Path) -> None:
    broker = BrokerProcess("amqtt", tmp_path)
    client = MqttTransport(broker.address(PLANNER_USER), "early")
    client.connect()
    assert client.receive(0.05) is None

    broker.start()

    wait_for(client, Connected)
    client.close()
    broker.stop()


def test_version_5_is_used_where_it_is_spoken_and_3_1_1_elsewhere(
    any_broker: BrokerProcess,
) -> None:
    client = MqttTransport(
        any_broker.address(PLANNER_USER),
        "client",
        will=Publication(TOPIC, b"lost", QoS.AT_LEAST_ONCE),
    )
    client.connect()

    wait_for(client, Connected)

    assert client.protocol == {"mosquitto": "5", "amqtt": "3.1.1"}[any_broker.kind]
    client.close()


def test_a_broker_that_never_answers_version_5_is_asked_again_with_3_1_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = MqttTransport(BrokerAddress("127.0.0.1", listener.getsockname()[1]), "client")
        client.connect()
        first, _ = listener.accept()
        assert first.recv(4096)[8] == 5

        second, _ = listener.accept()
        assert second.recv(4096)[8] == 4
        second.sendall(b"\x20\x02\x00\x00")

        wait_for(client, Connected)
        client.close()
        first.close()
        second.close()


@pytest.mark.parametrize(("user", "password"), [("node-1", "wrong"), ("nobody", "x"), (None, None)])
def test_refused_credentials_are_reported_once_and_end_the_attempts(
    any_broker: BrokerProcess, user: str | None, password: str | None
) -> None:
    address = BrokerAddress("127.0.0.1", any_broker.port, user, password)
    client = MqttTransport(address, "stranger")
    client.connect()

    refused = wait_for(client, Refused)

    assert "password" in refused.reason
    assert client.receive(0.5) is None
    client.close()


def test_several_threads_may_publish_at_once_and_every_byte_arrives(
    any_broker: BrokerProcess,
) -> None:
    # Larger than a socket buffer together, so that writes are cut in the middle.
    num_threads, num_messages = 4, 25
    topics = [DEVICE_STATUS.path(SITE, device=f"thread-{n}") for n in range(num_threads)]
    receiver = MqttTransport(any_broker.address(PLANNER_USER), "many-receiver")
    receiver.subscribe([(topic, QoS.AT_MOST_ONCE) for topic in topics])
    sender = MqttTransport(any_broker.address(PLANNER_USER), "many-sender")
    for client in (receiver, sender):
        client.connect()
        wait_for(client, Connected)

    def payload(topic: str, number: int) -> bytes:
        seed = hashlib.sha256(f"{topic} {number}".encode()).digest()
        return seed * 4096

    def publish(topic: str) -> None:
        for number in range(num_messages):
            qos = QoS.AT_LEAST_ONCE if number % 5 == 0 else QoS.AT_MOST_ONCE
            sender.publish(Publication(topic, payload(topic, number), qos))

    threads = [threading.Thread(target=publish, args=[topic]) for topic in topics]
    for thread in threads:
        thread.start()
    received: dict[str, list[bytes]] = {topic: [] for topic in topics}
    for _ in range(num_threads * num_messages):
        event = wait_for(receiver, Received)
        received[event.topic].append(event.payload)
    for thread in threads:
        thread.join()

    for topic in topics:
        expected = [payload(topic, number) for number in range(num_messages)]
        assert sorted(received[topic]) == sorted(expected)
    sender.close()
    receiver.close()


class HeldInbox(queue.SimpleQueue[TransportEvent]):
    """An inbox that holds up the network thread, so that the broker must queue."""

    def __init__(self) -> None:
        self.is_open = threading.Event()

    def put(self, item: TransportEvent, block: bool = True, timeout: float | None = None) -> None:
        if isinstance(item, Received):
            self.is_open.wait()
        super().put(item)


@pytest.mark.mosquitto
def test_mosquitto_drops_nothing_while_a_receiver_is_slow(mosquitto: BrokerProcess) -> None:
    # 48 MiB: far more than sockets hold, and three times the messages that Mosquitto queues
    # by default.
    inbox, num_messages = HeldInbox(), 3000
    receiver = MqttTransport(mosquitto.address(PLANNER_USER), "slow", inbox=inbox)
    receiver.subscribe([(TOPIC, QoS.AT_MOST_ONCE)])
    sender = MqttTransport(mosquitto.address(PLANNER_USER), "fast")
    end = DEVICE_STATUS.path(SITE, device="end")
    sender.subscribe([(end, QoS.AT_LEAST_ONCE)])
    for client in (receiver, sender):
        client.connect()
        wait_for(client, Connected)

    for number in range(num_messages):
        sender.publish(Publication(TOPIC, number.to_bytes(4, "big") * 4096))
    sender.publish(Publication(end, b"", QoS.AT_LEAST_ONCE))
    # Now the broker has all of them.
    wait_for(sender, Received)
    inbox.is_open.set()

    numbers = [
        int.from_bytes(wait_for(receiver, Received).payload[:4], "big") for _ in range(num_messages)
    ]
    assert numbers == list(range(num_messages))
    sender.close()
    receiver.close()


class CountedInbox(queue.SimpleQueue[TransportEvent]):
    """An inbox that says when so many messages are in it, and which threads put them there."""

    def __init__(self, expected: int) -> None:
        self.is_full = threading.Event()
        self.threads: set[str] = set()
        self._expected = expected

    def put(self, item: TransportEvent, block: bool = True, timeout: float | None = None) -> None:
        super().put(item)
        if isinstance(item, Received):
            self.threads.add(threading.current_thread().name)
            self._expected -= 1
            if not self._expected:
                self.is_full.set()


def test_messages_are_taken_in_while_their_owner_computes(any_broker: BrokerProcess) -> None:
    inbox = CountedInbox(expected=100)
    busy = MqttTransport(any_broker.address(PLANNER_USER), "busy", inbox=inbox)
    busy.subscribe([(TOPIC, QoS.AT_MOST_ONCE)])
    sender = MqttTransport(any_broker.address(PLANNER_USER), "sender")
    for client in (busy, sender):
        client.connect()
        wait_for(client, Connected)
    for number in range(100):
        sender.publish(Publication(TOPIC, bytes([number])))
    # From here on nobody asks for messages: a thread of the transport's own puts them.
    assert inbox.is_full.wait(PATIENCE_SECONDS)
    assert inbox.threads == {"mqtt-busy"}
    sender.close()
    busy.close()


def test_a_device_that_falls_silent_is_reported_by_its_will(any_broker: BrokerProcess) -> None:
    inbox = HeldInbox()
    topic = DEVICE_STATUS.path(SITE, device="frozen")
    frozen = MqttTransport(
        any_broker.address(PLANNER_USER),
        "frozen",
        will=Publication(topic, b"lost", QoS.AT_LEAST_ONCE),
        inbox=inbox,
        keep_alive_seconds=1,
    )
    frozen.subscribe([(TOPIC, QoS.AT_LEAST_ONCE)])
    watcher = MqttTransport(any_broker.address(PLANNER_USER), "watcher")
    watcher.subscribe([(topic, QoS.AT_LEAST_ONCE)])
    for client in (frozen, watcher):
        client.connect()
        wait_for(client, Connected)

    # Its network thread stands still from here on, while its socket stays open.
    watcher.publish(Publication(TOPIC, b"freeze", QoS.AT_LEAST_ONCE))

    assert wait_for(watcher, Received).payload == b"lost"
    inbox.is_open.set()
    frozen.close()
    watcher.close()


@pytest.mark.mosquitto
def test_a_packet_over_the_brokers_limit_costs_the_connection(
    mosquitto: BrokerProcess,
) -> None:
    client = MqttTransport(mosquitto.address(PLANNER_USER), "too-much", max_payload_bytes=4 << 20)
    client.connect()
    wait_for(client, Connected)

    client.publish(Publication(TOPIC, bytes(2 << 20)))

    # Mosquitto says "packet too large" and resets at once; a busy client may see the reset first.
    reason = wait_for(client, Disconnected).reason.lower()
    assert "large" in reason or "connection lost" in reason
    client.close()


def test_a_refused_subscription_is_logged_with_its_filter(
    amqtt: BrokerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    foreign = DEVICE_STATUS.path(SITE, device="node-2")
    client = MqttTransport(amqtt.address("node-1"), "node-1")
    client.subscribe([(foreign, QoS.AT_LEAST_ONCE), (PLAN.path(SITE), QoS.AT_LEAST_ONCE)])

    client.connect()

    wait_for(client, Connected)
    assert client.refused_filters == {foreign}
    assert [foreign in record.getMessage() for record in caplog.records] == [True]
    client.close()


def test_no_log_line_shows_a_password(caplog: pytest.LogCaptureFixture) -> None:
    address = BrokerAddress("127.0.0.1", free_port(), "node-1", "very-secret")
    client = MqttTransport(address, "node-1")

    with caplog.at_level("DEBUG"):
        client.connect()
        assert client.receive(0.5) is None
        client.close()

    assert "node-1@127.0.0.1" in caplog.text
    assert "very-secret" not in caplog.text + repr(address)


def test_close_ends_the_thread_at_once_though_it_waits_for_a_broker() -> None:
    client = MqttTransport(BrokerAddress("127.0.0.1", free_port()), "patient")
    client.connect()

    client.close()

    assert not [thread for thread in threading.enumerate() if thread.name == "mqtt-patient"]


def test_a_client_sends_at_once_without_waiting_for_more(any_broker: BrokerProcess) -> None:
    client = MqttTransport(any_broker.address(PLANNER_USER), "hurried")
    client.connect()
    wait_for(client, Connected)

    connection = client._client.socket()

    assert isinstance(connection, socket.socket)
    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    client.close()
