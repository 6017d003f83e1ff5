"""The link to the broker, measured by messages to oneself."""

import pytest

from broker.control import Link
from nodes.link import LinkProbe, kv_chunk_bytes


def run(probe: LinkProbe, latency: float, rate: float, slow_first: float = 0.0) -> None:
    now = 0.0
    while (payload := probe.next_payload(now)) is not None:
        now += slow_first + 2 * (latency + len(payload) / rate)
        slow_first = 0.0
        probe.take_echo(payload, now)


def test_latency_and_rate_of_a_link_are_found() -> None:
    probe = LinkProbe()
    run(probe, latency=0.002, rate=1e6)
    link = probe.link()
    assert link is not None
    assert link.latency_seconds == pytest.approx(0.002, rel=0.05)
    assert link.bytes_per_second == pytest.approx(1e6, rel=0.05)


def test_one_slow_message_does_not_count() -> None:
    probe = LinkProbe()
    run(probe, latency=0.002, rate=1e6, slow_first=0.5)
    link = probe.link()
    assert link is not None
    assert link.latency_seconds == pytest.approx(0.002, rel=0.05)


def test_a_broker_that_sends_nothing_back_is_given_up() -> None:
    probe = LinkProbe()
    assert probe.next_payload(0.0) is not None
    assert probe.next_payload(0.5) is None
    assert probe.next_payload(1.0) is not None
    assert probe.next_payload(2.0) is None
    assert probe.is_done
    assert probe.link() is None


def test_an_echo_that_comes_too_late_is_not_taken_for_the_next_one() -> None:
    probe = LinkProbe()
    late = probe.next_payload(0.0)
    assert late is not None
    following = probe.next_payload(1.0)
    assert following is not None
    probe.take_echo(late, 1.001)
    probe.take_echo(following, 1.4)
    link = probe.link()
    assert link is not None
    assert link.latency_seconds == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("rate", "expected"), [(1e5, 16 << 10), (6.25e6, 125_000), (1e9, 256 << 10)]
)
def test_a_kv_chunk_takes_about_20_ms_within_bounds(rate: float, expected: int) -> None:
    link = Link(latency_seconds=0.0, bytes_per_second=rate)
    assert kv_chunk_bytes(link) == expected
