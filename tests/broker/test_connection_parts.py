"""The pure parts of a connection: address, filters, subscriptions, backoff."""

import random
import re
import selectors
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.address import BrokerAddress
from broker.backoff import Backoff
from broker.filters import covers, is_filter
from broker.sockets import Wakeup, part
from broker.subscriptions import Subscriptions
from broker.topics import QoS
from broker.transport import Publication
from broker.waiting import WaitingRoom


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("mqtt://broker", BrokerAddress("broker")),
        ("mqtt://127.0.0.1:1884/", BrokerAddress("127.0.0.1", 1884)),
        ("mqtt://node-1:pw@h:1", BrokerAddress("h", 1, "node-1", "pw")),
        ("mqtt://node%401:p%3A%2F%40@h", BrokerAddress("h", 1883, "node@1", "p:/@")),
        ("mqtt://u@[::1]:1883", BrokerAddress("::1", 1883, "u")),
    ],
)
def test_an_address_is_read_and_written_back(text: str, address: BrokerAddress) -> None:
    assert BrokerAddress.parse(text) == address
    assert BrokerAddress.parse(address.url) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "broker:1883",
        "http://user:secret@broker",
        "mqtts://user:secret@broker",
        "mqtt://user:secret@",
        "mqtt://user:secret@broker:port",
        "mqtt://user:secret@broker:0",
        "mqtt://user:secret@broker:70000",
        "mqtt://user:secret@broker/topic",
        "mqtt://user:secret@broker?x=1",
        "mqtt://:secret@broker",
        "mqtt://[::1",
    ],
)
def test_what_is_no_address_is_refused_without_repeating_the_password(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|port|password") as caught:
        BrokerAddress.parse(text)

    assert "secret" not in str(caught.value)


def test_an_address_shows_no_password() -> None:
    address = BrokerAddress.parse("mqtt://user:secret@broker")

    assert "secret" not in f"{address} {address!r}"
    assert "user" in str(address)


def test_a_client_id_is_the_same_in_every_session_and_unknown_to_other_users() -> None:
    address = BrokerAddress("broker", username="node-1", password="secret")
    client_id = address.secret_client_id("node-1")

    again = BrokerAddress("elsewhere", 1884, "node-1", "secret")
    assert again.secret_client_id("node-1") == client_id
    assert re.fullmatch(r"node-1~[0-9a-f]{16}", client_id)
    assert "secret" not in client_id
    others = [("node-1", "wrong"), ("node-2", "secret"), ("node-1", "")]
    assert client_id not in {
        BrokerAddress("broker", username=user, password=password).secret_client_id("node-1")
        for user, password in others
    }


def test_without_a_password_a_client_id_has_no_secret() -> None:
    assert BrokerAddress("broker", username="node-1").secret_client_id("node-1~kv") == "node-1~kv"


# The levels of the standard's own examples (MQTT 3.1.1, 4.7.1).
@pytest.mark.parametrize(
    ("wide", "narrow", "expected"),
    [
        ("sport/tennis/player1/#", "sport/tennis/player1", True),
        ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", True),
        ("sport/#", "sport", True),
        ("#", "sport/tennis", True),
        ("sport/tennis/+", "sport/tennis/player1", True),
        ("sport/tennis/+", "sport/tennis/player1/ranking", False),
        ("sport/+", "sport", False),
        ("sport/+", "sport/", True),
        ("+/+", "/finance", True),
        ("/+", "/finance", True),
        ("+", "/finance", False),
        ("#", "$SYS/broker", False),
        ("+/broker", "$SYS/broker", False),
        ("$SYS/#", "$SYS/broker", True),
        # Of filters.
        ("a/#", "a/+/c", True),
        ("a/+", "a/#", False),
        ("a/b", "a/+", False),
        ("+/+", "+/b", True),
    ],
)
def test_a_filter_covers_what_the_standard_says(wide: str, narrow: str, expected: bool) -> None:
    assert covers(wide, narrow) is expected


LEVELS = st.lists(st.sampled_from(["a", "b", "", "+"]), min_size=1, max_size=4)


@given(LEVELS, st.booleans(), LEVELS)
def test_a_filter_matches_topics_as_its_regular_expression_does(
    levels: list[str], rest: bool, topic_levels: list[str]
) -> None:
    text = "/".join([*levels, "#"] if rest else levels)
    topic = "/".join("a" if level == "+" else level for level in topic_levels)
    body = "/".join("[^/]*" if level == "+" else re.escape(level) for level in levels)

    assert covers(text, topic) is bool(re.fullmatch(body + ("(/.*)?" if rest else ""), topic))


@pytest.mark.parametrize(
    ("text", "legal"),
    [("a/+/b", True), ("#", True), ("a/#", True), ("", False), ("a/#/b", False), ("a+", False)],
)
def test_wildcards_stand_alone_and_the_hash_at_the_end(text: str, legal: bool) -> None:
    assert is_filter(text) is legal


class Wire:
    """Takes SUBSCRIBE packets and numbers them."""

    def __init__(self) -> None:
        self.sent: list[list[str]] = []

    def __call__(self, filters: list[tuple[str, int]]) -> int | None:
        self.sent.append([text for text, _qos in filters])
        return len(self.sent)


def test_a_connection_is_complete_when_every_subscription_is_answered() -> None:
    wire = Wire()
    subscriptions = Subscriptions(wire)
    subscriptions.add({"a": QoS.AT_MOST_ONCE})
    assert not subscriptions.is_complete

    subscriptions.accepted()
    subscriptions.add({"b": QoS.AT_LEAST_ONCE})
    assert wire.sent == [["a"], ["b"]]
    subscriptions.answered(2, [False])
    assert not subscriptions.is_complete
    subscriptions.answered(1, [False])

    assert subscriptions.is_complete


def test_every_connection_asks_for_all_filters_again() -> None:
    wire = Wire()
    subscriptions = Subscriptions(wire)
    subscriptions.add({"a": QoS.AT_MOST_ONCE})
    subscriptions.accepted()
    subscriptions.lost()
    subscriptions.add({"b": QoS.AT_MOST_ONCE})
    assert wire.sent == [["a"]]

    subscriptions.accepted()

    assert wire.sent == [["a"], ["a", "b"]]
    # The answer to a packet of the lost connection says nothing about this one.
    subscriptions.answered(1, [False])
    assert not subscriptions.is_complete


def test_without_a_filter_nothing_is_asked() -> None:
    wire = Wire()
    subscriptions = Subscriptions(wire)

    subscriptions.accepted()

    assert wire.sent == []
    assert subscriptions.is_complete


def test_a_refusal_is_remembered_for_this_connection() -> None:
    subscriptions = Subscriptions(Wire())
    subscriptions.add({"a": QoS.AT_MOST_ONCE, "b": QoS.AT_MOST_ONCE})
    subscriptions.accepted()

    assert subscriptions.answered(1, [False, True]) == ["b"]
    assert subscriptions.refused == {"b"}
    subscriptions.accepted()
    assert subscriptions.refused == frozenset()


def test_delays_double_to_a_limit_with_jitter_and_start_anew_after_a_stable_connection() -> None:
    backoff = Backoff(rng=random.Random(1))

    delays = [backoff.next_delay() for _ in range(30)]

    for delay, ceiling in zip(delays, [0.2, 0.4, 0.8, 1.6, 3.2, 5.0], strict=False):
        assert ceiling / 2 <= delay <= ceiling
    assert all(2.5 <= delay <= 5.0 for delay in delays[5:])
    assert len(set(delays)) == len(delays)
    assert backoff.next_delay(lived_seconds=9.0) >= 2.5
    assert backoff.next_delay(lived_seconds=10.0) <= 0.2


def connected_sockets() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    return near, far


def test_whoever_parts_still_reads_so_that_its_last_words_are_heard() -> None:
    near, far = connected_sockets()
    near.sendall(b"last words")
    parting = threading.Thread(target=part, args=(near, 10.0))
    parting.start()

    # More than the buffers hold: a closed socket would have reset the connection.
    far.sendall(bytes(16 << 20))

    assert far.recv(100) == b"last words"
    assert far.recv(100) == b""
    far.close()
    parting.join(10.0)
    assert not parting.is_alive()
    assert near.fileno() == -1


def test_parting_does_not_wait_for_ever() -> None:
    near, far = connected_sockets()
    started = time.monotonic()

    part(near, 0.05)

    assert 0.05 <= time.monotonic() - started < 5.0
    far.close()


def test_a_thread_in_a_selector_is_woken_once_for_many_calls() -> None:
    wakeup = Wakeup()
    with selectors.DefaultSelector() as selector:
        selector.register(wakeup, selectors.EVENT_READ)
        for _ in range(1000):
            wakeup.set()

        assert selector.select(5.0)
        wakeup.clear()
        assert not selector.select(0.0)

    wakeup.close()
    wakeup.set()


def test_a_waiting_room_keeps_what_must_arrive_in_order_and_counts_the_rest() -> None:
    first, second, third, fourth = (
        Publication("t", str(number).encode(), QoS.AT_LEAST_ONCE) for number in range(4)
    )
    room = WaitingRoom(limit=3)

    room.keep(Publication("t", b"at most once"))
    for publication in (second, third):
        room.keep(publication)
    assert room.num_dropped == 1
    room.put_first([first])
    room.keep(fourth)

    assert room.num_dropped == 2
    assert room.leave() == [second, third, fourth]
    assert room.leave() == []
