"""What every transport promises, asked of all: in memory, on Mosquitto, on amqtt."""

import itertools
import queue
import threading
from collections.abc import Iterator

import pytest

from broker.limits import DEFAULT_MAX_PAYLOAD_BYTES
from broker.memory import MemoryBroker, MemoryTransport
from broker.mqtt import MqttTransport
from broker.topics import DEVICE_STATUS, PLANNER_USER, QoS
from broker.transport import (
    NO_PROPERTIES,
    Connected,
    Disconnected,
    Inbox,
    Properties,
    Publication,
    Received,
    TransportClosedError,
)
from tests.support.bus import PATIENCE_SECONDS, SITE, BrokerProcess, wait_for

AnyTransport = MemoryTransport | MqttTransport
_numbers = itertools.count()


def fresh_topic() -> str:
    """A topic that no other test has used, so that nothing retained is on it."""
    return DEVICE_STATUS.path(SITE, device=f"device-{next(_numbers)}")


class Bus:
    """A broker of one kind, and clients that the test need not close."""

    def __init__(self, broker: MemoryBroker | BrokerProcess) -> None:
        self.broker = broker
        self.kind = broker.kind if isinstance(broker, BrokerProcess) else "memory"
        self.clients: list[AnyTransport] = []

    def client(
        self,
        will: Publication | None = None,
        inbox: Inbox | None = None,
        client_id: str | None = None,
    ) -> AnyTransport:
        client_id = client_id or f"client-{next(_numbers)}"
        client: AnyTransport
        if isinstance(self.broker, MemoryBroker):
            client = MemoryTransport(self.broker, client_id, will=will, inbox=inbox)
        else:
            address = self.broker.address(PLANNER_USER)
            client = MqttTransport(address, client_id, will=will, inbox=inbox)
        self.clients.append(client)
        return client

    def connected(
        self,
        *filters: str,
        qos: QoS = QoS.AT_LEAST_ONCE,
        will: Publication | None = None,
    ) -> AnyTransport:
        client = self.client(will)
        client.subscribe([(text, qos) for text in filters])
        client.connect()
        wait_for(client, Connected)
        return client

    def cut(self, client: AnyTransport) -> None:
        """Cut the connection, and wait until the client is back."""
        client.drop()
        wait_for(client, Disconnected)
        if isinstance(client, MemoryTransport):
            client.connect()
        wait_for(client, Connected)


@pytest.fixture(params=["memory", pytest.param("mosquitto", marks=pytest.mark.mosquitto), "amqtt"])
def bus(request: pytest.FixtureRequest) -> Iterator[Bus]:
    kind = request.param
    bus = Bus(MemoryBroker() if kind == "memory" else request.getfixturevalue(kind))
    yield bus
    for client in bus.clients:
        client.close()


def test_messages_of_one_sender_arrive_in_their_order(bus: Bus) -> None:
    topic = fresh_topic()
    sender, receiver = bus.connected(), bus.connected(topic, qos=QoS.AT_MOST_ONCE)
    payloads = [b"message %d" % number for number in range(300)]

    for payload in payloads:
        sender.publish(Publication(topic, payload))

    assert [wait_for(receiver, Received).payload for _ in payloads] == payloads


def test_a_message_reaches_only_who_asked_for_its_topic(bus: Bus) -> None:
    wanted, other = fresh_topic(), fresh_topic()
    sender, receiver = bus.connected(), bus.connected(wanted)

    sender.publish(Publication(other, b"not for you", QoS.AT_LEAST_ONCE))
    sender.publish(Publication(wanted, b"for you", QoS.AT_LEAST_ONCE))

    assert wait_for(receiver, Received) == Received(wanted, b"for you")


def test_what_goes_over_a_connection_is_counted(bus: Bus) -> None:
    topic = fresh_topic()
    sender, receiver = bus.connected(), bus.connected(topic)
    before = sender.traffic.messages_sent

    sender.publish(Publication(topic, b"12345", QoS.AT_LEAST_ONCE))
    wait_for(receiver, Received)

    assert sender.traffic.messages_sent == before + 1
    assert sender.traffic.bytes_sent >= 5
    assert (receiver.traffic.messages_received, receiver.traffic.bytes_received) == (1, 5)


def test_a_wildcard_subscription_receives_every_match(bus: Bus) -> None:
    topic = fresh_topic()
    sender, receiver = bus.connected(), bus.connected(DEVICE_STATUS.filter(SITE))

    sender.publish(Publication(topic, b"hello", QoS.AT_LEAST_ONCE))

    wait_for(receiver, Received, lambda event: event.topic == topic)


def test_properties_arrive_where_the_broker_speaks_mqtt_5(bus: Bus) -> None:
    topic = fresh_topic()
    sender, receiver = bus.connected(), bus.connected(topic)
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    properties = Properties("replies/here", b"\x00\xff", 30, traceparent)

    sender.publish(Publication(topic, b"hello", QoS.AT_LEAST_ONCE, properties=properties))

    # amqtt speaks 3.1.1, which has none.
    expected = NO_PROPERTIES if bus.kind == "amqtt" else properties
    assert wait_for(receiver, Received) == Received(topic, b"hello", properties=expected)


def test_every_byte_survives(bus: Bus) -> None:
    topic = fresh_topic()
    sender, receiver = bus.connected(), bus.connected(topic)

    sender.publish(Publication(topic, bytes(range(256))))
    sender.publish(Publication(topic, bytearray(b"\x00\xff")))
    sender.publish(Publication(topic, b""))

    assert [wait_for(receiver, Received).payload for _ in range(3)] == [
        bytes(range(256)),
        b"\x00\xff",
        b"",
    ]


def test_a_payload_of_one_mebibyte_and_a_header_arrives_whole(bus: Bus) -> None:
    topic = fresh_topic()
    sender, receiver = bus.connected(), bus.connected(topic)
    payload = bytes(range(256)) * (DEFAULT_MAX_PAYLOAD_BYTES // 256)
    assert len(payload) == DEFAULT_MAX_PAYLOAD_BYTES

    sender.publish(Publication(topic, payload, QoS.AT_LEAST_ONCE))

    assert wait_for(receiver, Received).payload == payload


def test_a_payload_over_the_limit_is_an_error_that_names_topic_and_size(bus: Bus) -> None:
    client, topic = bus.connected(), fresh_topic()

    with pytest.raises(ValueError, match=rf"{topic} has {DEFAULT_MAX_PAYLOAD_BYTES + 1} bytes"):
        client.publish(Publication(topic, bytes(DEFAULT_MAX_PAYLOAD_BYTES + 1)))

    client.publish(Publication(topic, b"still connected"))
    assert client.is_connected


def test_a_payload_that_no_client_takes_is_refused_before_it_is_sent(bus: Bus) -> None:
    client = bus.connected()

    with pytest.raises(TypeError, match="memoryview"):
        client.publish(Publication(fresh_topic(), memoryview(b"x")))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="wildcard"):
        client.publish(Publication(DEVICE_STATUS.filter(SITE), b"x"))
    with pytest.raises(ValueError, match="not a topic filter"):
        client.subscribe([("devices/#/status", QoS.AT_MOST_ONCE)])


def test_a_retained_message_reaches_a_late_subscriber_as_retained(bus: Bus) -> None:
    topic = fresh_topic()
    sender, early = bus.connected(), bus.connected(topic)

    sender.publish(Publication(topic, b"state", QoS.AT_LEAST_ONCE, retained=True))

    assert wait_for(early, Received) == Received(topic, b"state", retained=False)
    late = bus.connected(topic)
    assert wait_for(late, Received) == Received(topic, b"state", retained=True)


def test_a_subscription_of_a_connected_client_brings_retained_messages(bus: Bus) -> None:
    topic = fresh_topic()
    client = bus.connected()
    client.publish(Publication(topic, b"state", QoS.AT_LEAST_ONCE, retained=True))

    client.subscribe([(topic, QoS.AT_LEAST_ONCE)])

    assert wait_for(client, Received).payload == b"state"


def test_a_client_hears_nothing_that_it_did_not_ask_for(bus: Bus) -> None:
    topic, own = fresh_topic(), fresh_topic()
    sender = bus.connected(topic)
    sender.publish(Publication(topic, b"state", QoS.AT_LEAST_ONCE, retained=True))
    wait_for(sender, Received)

    client = bus.connected(own)
    sender.publish(Publication(own, b"for you", QoS.AT_LEAST_ONCE))

    assert client.receive(PATIENCE_SECONDS) == Received(own, b"for you")


def publish_until(is_over: threading.Event, sender: AnyTransport, topic: str) -> None:
    # Bounded, so that a broker slower than the sender is not buried.
    for _ in range(1000):
        sender.publish(Publication(topic, bytes(1 << 14)))
        if is_over.wait(0.0005):
            break


def test_a_close_amid_arriving_messages_is_a_clean_one(bus: Bus) -> None:
    # A socket closed with unread data resets the connection, and the broker, which then
    # never sees the DISCONNECT, would publish the will.
    topic, flood = fresh_topic(), fresh_topic()
    will = Publication(topic, b"lost", QoS.AT_LEAST_ONCE, retained=True)
    watcher, client = bus.connected(topic), bus.client(will)
    client.subscribe([(flood, QoS.AT_MOST_ONCE)])
    client.connect()
    wait_for(client, Connected)

    is_over = threading.Event()
    pump = threading.Thread(target=publish_until, args=(is_over, bus.connected(), flood))
    pump.start()
    wait_for(client, Received)
    client.close(Publication(topic, b"sleeping", QoS.AT_LEAST_ONCE, retained=True))
    is_over.set()
    pump.join()

    assert wait_for(watcher, Received).payload == b"sleeping"
    watcher.publish(Publication(topic, b"afterwards", QoS.AT_LEAST_ONCE))
    assert wait_for(watcher, Received).payload == b"afterwards"


def test_an_empty_payload_clears_what_was_retained(bus: Bus) -> None:
    topic = fresh_topic()
    sender = bus.connected(topic)
    sender.publish(Publication(topic, b"state", QoS.AT_LEAST_ONCE, retained=True))
    sender.publish(Publication(topic, b"", QoS.AT_LEAST_ONCE, retained=True))
    assert [wait_for(sender, Received).payload for _ in range(2)] == [b"state", b""]

    late = bus.connected(topic)
    sender.publish(Publication(topic, b"after", QoS.AT_LEAST_ONCE))

    assert wait_for(late, Received).payload == b"after"


def test_a_lost_connection_has_the_broker_publish_the_will_and_retain_it(bus: Bus) -> None:
    topic = fresh_topic()
    will = Publication(topic, b"lost", QoS.AT_LEAST_ONCE, retained=True)
    watcher, client = bus.connected(topic), bus.connected(will=will)

    client.drop()

    assert wait_for(watcher, Received).payload == b"lost"
    assert wait_for(bus.connected(topic), Received) == Received(topic, b"lost", retained=True)


def test_a_clean_close_publishes_the_farewell_and_never_the_will(bus: Bus) -> None:
    topic = fresh_topic()
    will = Publication(topic, b"lost", QoS.AT_LEAST_ONCE, retained=True)
    watcher, client = bus.connected(topic), bus.connected(will=will)

    client.close(Publication(topic, b"sleeping", QoS.AT_LEAST_ONCE, retained=True))

    assert wait_for(watcher, Received).payload == b"sleeping"
    watcher.publish(Publication(topic, b"afterwards", QoS.AT_LEAST_ONCE))
    assert wait_for(watcher, Received).payload == b"afterwards"
    assert wait_for(bus.connected(topic), Received).payload == b"sleeping"


def test_a_farewell_at_qos_0_is_on_the_wire_before_the_goodbye(bus: Bus) -> None:
    topic = fresh_topic()
    watcher, client = bus.connected(topic), bus.connected()

    for number in range(50):
        client.publish(Publication(topic, b"%d" % number))
    client.close(Publication(topic, b"bye"))

    last_words = [wait_for(watcher, Received).payload for _ in range(51)]
    assert last_words == [*(b"%d" % number for number in range(50)), b"bye"]


def test_after_a_lost_connection_the_subscriptions_are_back(bus: Bus) -> None:
    topic = fresh_topic()
    sender, receiver = bus.connected(), bus.connected(topic)

    bus.cut(receiver)
    sender.publish(Publication(topic, b"found you"))

    assert wait_for(receiver, Received).payload == b"found you"


def test_two_transports_can_share_an_inbox(bus: Bus) -> None:
    inbox: Inbox = queue.SimpleQueue()
    control, data = bus.client(inbox=inbox), bus.client(inbox=inbox)
    topics = fresh_topic(), fresh_topic()
    for client, topic in zip((control, data), topics, strict=True):
        client.subscribe([(topic, QoS.AT_LEAST_ONCE)])
        client.connect()
    assert {wait_for(control, Connected).client_id for _ in range(2)} == {
        control.client_id,
        data.client_id,
    }

    for topic in topics:
        control.publish(Publication(topic, b"x", QoS.AT_LEAST_ONCE))

    assert {wait_for(data, Received).topic for _ in range(2)} == set(topics)


def test_without_a_connection_qos_0_is_dropped_and_qos_1_kept_in_order(bus: Bus) -> None:
    topic = fresh_topic()
    receiver, client = bus.connected(topic), bus.client()

    client.publish(Publication(topic, b"dropped"))
    client.publish(Publication(topic, b"first", QoS.AT_LEAST_ONCE))
    client.publish(Publication(topic, b"second", QoS.AT_LEAST_ONCE))
    assert client.num_dropped == 1
    assert not client.is_connected
    client.connect()
    wait_for(client, Connected)
    client.publish(Publication(topic, b"third", QoS.AT_LEAST_ONCE))

    received = [wait_for(receiver, Received).payload for _ in range(3)]
    assert received == [b"first", b"second", b"third"]


def test_close_can_be_repeated_and_ends_everything_else(bus: Bus) -> None:
    client, topic = bus.connected(), fresh_topic()

    client.close()
    client.close()

    assert not client.is_connected
    with pytest.raises(TransportClosedError):
        client.publish(Publication(topic, b"too late"))
    with pytest.raises(TransportClosedError):
        client.subscribe([(topic, QoS.AT_MOST_ONCE)])
    with pytest.raises(TransportClosedError):
        client.connect()


def test_a_transport_that_never_connected_can_be_closed(bus: Bus) -> None:
    client = bus.client()

    client.close(Publication(fresh_topic(), b"nobody hears it"))

    assert client.receive(0.0) is None


def test_a_second_client_with_the_same_id_takes_the_place_of_the_first(bus: Bus) -> None:
    topic, said = fresh_topic(), fresh_topic()
    watcher = bus.connected(said)
    first = bus.connected(topic, will=Publication(said, b"lost", QoS.AT_LEAST_ONCE))

    second = bus.client(client_id=first.client_id)
    second.subscribe([(topic, QoS.AT_LEAST_ONCE)])
    second.connect()

    wait_for(second, Connected)
    wait_for(first, Disconnected)
    # Else the two take each other's place until the test ends.
    first.close()
    assert wait_for(watcher, Received).payload == b"lost"
    # What the broker forgets of the first is not what the second asked for.
    watcher.publish(Publication(topic, b"for the second", QoS.AT_LEAST_ONCE))
    assert wait_for(second, Received).payload == b"for the second"
