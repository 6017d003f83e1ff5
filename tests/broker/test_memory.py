"""The broker in memory: faults and time from outside, and order under both."""

import random
from collections.abc import Sequence

from broker.memory import MemoryBroker, MemoryTransport
from broker.topics import QoS
from broker.transport import Connected, Disconnected, Publication, Received

EVERYTHING = [("#", QoS.AT_LEAST_ONCE)]


def pair(broker: MemoryBroker) -> tuple[MemoryTransport, MemoryTransport]:
    """A sender, and a receiver of everything whose `Connected` is taken."""
    sender, receiver = MemoryTransport(broker, "sender"), MemoryTransport(broker, "receiver")
    sender.connect()
    receiver.subscribe(EVERYTHING)
    receiver.connect()
    assert receiver.receive(0.0) == Connected("receiver")
    return sender, receiver


def payloads(transport: MemoryTransport) -> list[bytes]:
    """What has arrived so far."""
    received = []
    while isinstance(event := transport.receive(0.0), Received):
        received.append(event.payload)
    return received


def test_a_fault_loses_repeats_and_delays_data() -> None:
    def fault(publication: Publication) -> Sequence[tuple[float, Publication]]:
        return {
            b"lost": [],
            b"twice": [(0.0, publication), (0.0, publication)],
            b"late": [(2.0, publication)],
        }.get(bytes(publication.payload), [(0.0, publication)])

    broker = MemoryBroker(fault)
    sender, receiver = pair(broker)

    for payload in (b"lost", b"twice", b"late", b"plain"):
        sender.publish(Publication("t", payload))

    assert payloads(receiver) == [b"twice", b"twice", b"plain"]
    broker.advance(1.9)
    assert payloads(receiver) == []
    broker.advance(2.0)
    assert payloads(receiver) == [b"late"]


def test_late_messages_arrive_in_the_order_in_which_they_are_due() -> None:
    delays = iter([3.0, 1.0, 2.0, 1.0])
    broker = MemoryBroker(lambda publication: [(next(delays), publication)])
    sender, receiver = pair(broker)

    for payload in (b"3", b"1a", b"2", b"1b"):
        sender.publish(Publication("t", payload))
    broker.advance(10.0)

    assert payloads(receiver) == [b"1a", b"1b", b"2", b"3"]


def test_a_seeded_fault_does_the_same_in_every_run() -> None:
    def run() -> list[bytes]:
        rng = random.Random(7)
        broker = MemoryBroker(lambda p: [(rng.random(), p) for _ in range(rng.randrange(3))])
        sender, receiver = pair(broker)
        for number in range(50):
            sender.publish(Publication("t", b"%d" % number))
        broker.advance(1.0)
        return payloads(receiver)

    assert run() == run()
    assert run() != [b"%d" % number for number in range(50)]


def test_a_fault_leaves_control_messages_alone() -> None:
    broker = MemoryBroker(lambda _publication: [])
    sender, receiver = pair(broker)

    sender.publish(Publication("t", b"control", QoS.AT_LEAST_ONCE))
    sender.publish(Publication("t", b"state", QoS.AT_MOST_ONCE, retained=True))
    sender.publish(Publication("t", b"data"))

    assert payloads(receiver) == [b"control", b"state"]
    assert broker.retained == {"t": b"state"}


def test_a_payload_is_what_it_was_when_it_was_published() -> None:
    sender, receiver = pair(MemoryBroker())
    frame = bytearray(b"before")

    sender.publish(Publication("t", frame))
    frame[:] = b"after!"

    assert payloads(receiver) == [b"before"]


def test_a_dropped_client_hears_nothing_until_it_connects_again() -> None:
    sender, receiver = pair(MemoryBroker())

    receiver.drop("the cable was cut")
    receiver.drop("again")
    sender.publish(Publication("t", b"missed"))
    receiver.connect()
    sender.publish(Publication("t", b"heard"))

    assert receiver.receive(0.0) == Disconnected("receiver", "the cable was cut")
    assert receiver.receive(0.0) == Connected("receiver")
    assert payloads(receiver) == [b"heard"]
