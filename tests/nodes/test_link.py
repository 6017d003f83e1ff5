"""The link to the broker, measured by messages to oneself."""

import pytest

from broker.control import Link
from nodes.link import LARGE_BYTES, LinkProbe, LinkWatch, kv_chunk_bytes


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


# --- while the device serves ----------------------------------------------------------------

START = Link(latency_seconds=0.002, bytes_per_second=1e6)


def watched(watch: LinkWatch, latency: float, rate: float, since: float, until: float) -> Link:
    """Let time pass over a link of this latency and rate; return what is found."""
    now = since
    while now < until:
        payload = watch.next_payload(now, 0)
        if payload is not None:
            took = 2 * (latency + len(payload) / rate)
            watch.take_echo(payload, now + took, 0)
        now += 0.5
    return watch.link()


def test_before_any_echo_the_link_is_that_of_the_start() -> None:
    assert LinkWatch(START).link() == START


def test_a_link_slowed_to_a_tenth_is_found_within_15_seconds() -> None:
    watch = LinkWatch(START)
    found = watched(watch, 0.002, 1e6, 100, 160)
    assert found.latency_seconds == pytest.approx(0.002, rel=0.05)
    assert found.bytes_per_second == pytest.approx(1e6, rel=0.05)
    slow = watched(watch, 0.02, 1e5, 160, 175)
    assert slow.latency_seconds == pytest.approx(0.02, rel=0.05)
    assert slow.bytes_per_second == pytest.approx(1e5, rel=0.05)


def test_echoes_count_only_when_nothing_was_computed_meanwhile() -> None:
    watch = LinkWatch(START)
    payload = watch.next_payload(100.0, 7)
    assert payload is not None
    watch.take_echo(payload, 100.9, 8)
    assert watch.link() == START


def test_the_messages_are_few_and_no_longer_than_the_link_bears() -> None:
    watch = LinkWatch(Link(latency_seconds=0.001, bytes_per_second=1e9))
    sizes = []
    for tick in range(1200):
        payload = watch.next_payload(tick * 0.1, 0)
        if payload is not None:
            sizes.append(len(payload))
            watch.take_echo(payload, tick * 0.1 + 0.002, 0)
    assert max(sizes) == LARGE_BYTES
    assert len(sizes) <= 95
    slow = LinkWatch(Link(latency_seconds=0.001, bytes_per_second=1e4))
    assert len(slow.next_payload(0.0, 0) or b"") == 64


def test_a_lost_echo_does_not_stop_the_watch() -> None:
    watch = LinkWatch(START)
    assert watch.next_payload(100.0, 0) is not None
    assert watch.next_payload(100.5, 0) is None
    assert watch.next_payload(102.0, 0) is not None


def test_foreign_and_late_echoes_change_nothing() -> None:
    watch = LinkWatch(START)
    late = watch.next_payload(100.0, 0)
    assert late is not None
    watch.take_echo(b"", 100.1, 0)
    watch.take_echo(b"\x00\x00\x00\x01", 100.1, 0)
    fresh = watch.next_payload(103.0, 0)
    assert fresh is not None
    watch.take_echo(late, 103.001, 0)
    assert watch.link() == START
