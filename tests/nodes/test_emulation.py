"""Emulated devices wait, emulated links delay."""

import os
import queue
import time
from pathlib import Path

import pytest

from broker.conditions import ConditionsFile
from broker.memory import MemoryBroker, MemoryTransport
from broker.topics import QoS
from broker.transport import Connected, Inbox, Publication, Received
from nodes.emulation import (
    EmulatedInbox,
    EmulatedLink,
    EmulatedTransport,
    LinkSchedule,
    Pacer,
)


class FakeTime:
    """A clock that only sleeping and computing move."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def pacer(fake: FakeTime, slowdown: float) -> Pacer:
    return Pacer(slowdown, fake.sleep, fake.clock, fake.clock)


def test_a_step_ends_at_its_calibrated_time_times_the_slowdown_after_it_began() -> None:
    fake = FakeTime()
    device = pacer(fake, slowdown=4)
    device.begin()
    fake.now += 0.03  # computing took this long, waiting for a core included
    took = device.finish(0.01)
    assert took.seconds == pytest.approx(0.04)
    assert fake.slept == pytest.approx([0.01])
    assert device.late_steps == 0


def test_a_device_that_suffers_is_slower_still(tmp_path: Path) -> None:
    fake, path = FakeTime(), tmp_path / "conditions.json"
    file = ConditionsFile(path)
    device = Pacer(2, fake.sleep, fake.clock, fake.clock, lambda: file.of("pi").slowdown)

    def took() -> float:
        device.begin()
        return device.finish(0.01).active_seconds

    assert took() == pytest.approx(0.02)
    assert device.canary(lambda: 7.0) == 1.0
    path.write_text('{"pi": {"slowdown": 4.0, "cut": false}, "pc": {"slowdown": 9.0}}')
    assert took() == pytest.approx(0.08)
    assert device.canary(lambda: 7.0) == 4.0
    os.utime(path, ns=(1, 1))
    path.write_text("{")
    assert took() == pytest.approx(0.08)
    path.write_text("{}")
    os.utime(path, ns=(2, 2))
    assert took() == pytest.approx(0.02)
    path.unlink()
    assert took() == pytest.approx(0.02)
    assert device.slowdown == 2


def test_a_step_that_could_not_be_kept_is_counted_and_does_not_wait() -> None:
    fake = FakeTime()
    device = pacer(fake, slowdown=2)
    device.begin()
    fake.now += 0.05
    assert device.finish(0.01).seconds == pytest.approx(0.05)
    assert fake.slept == []
    assert device.late_steps == 1


def test_a_real_device_never_waits_and_is_never_late() -> None:
    fake = FakeTime()
    device = pacer(fake, slowdown=1)
    device.begin()
    device.finish(5.0)
    device.begin()
    fake.now += 1.0
    device.finish(0.1)
    assert fake.slept == []
    assert device.late_steps == 0


def test_a_second_computation_of_one_job_begins_where_the_first_ended() -> None:
    fake = FakeTime()
    device = pacer(fake, slowdown=3)
    device.begin()
    device.finish(0.01)
    device.finish(0.01)
    assert fake.now == pytest.approx(100.06)


def test_messages_pass_a_link_one_after_the_other_and_then_take_its_delay() -> None:
    link = LinkSchedule(0.5, 100.0)
    first = link.due(10.0, "up", 200, is_kv=False)
    second = link.due(10.0, "up", 100, is_kv=False)
    assert (first, second) == pytest.approx((12.5, 13.5))


def test_the_two_directions_of_a_link_do_not_wait_for_each_other() -> None:
    link = LinkSchedule(0.0, 100.0)
    link.due(10.0, "up", 1000, is_kv=False)
    assert link.due(10.0, "down", 100, is_kv=False) == pytest.approx(11.0)


def test_a_kv_chunk_never_delays_work_but_work_delays_kv() -> None:
    link = LinkSchedule(0.0, 100.0)
    link.due(10.0, "up", 1000, is_kv=True)
    assert link.due(10.0, "up", 100, is_kv=False) == pytest.approx(11.0)
    assert link.due(10.0, "up", 100, is_kv=True) == pytest.approx(22.0)


def test_without_a_rate_a_link_only_delays() -> None:
    link = LinkSchedule(0.25, None)
    assert link.due(1.0, "up", 10**9, is_kv=False) == pytest.approx(1.25)


def test_a_message_takes_the_delay_on_both_links_of_its_way() -> None:
    broker = MemoryBroker()
    target: Inbox = queue.SimpleQueue()
    link = EmulatedLink(LinkSchedule(0.02, None))
    inner = MemoryTransport(broker, "device", inbox=EmulatedInbox(link, target, is_kv=False))
    inner.subscribe([("a/topic", QoS.AT_MOST_ONCE)])
    inner.connect()
    transport = EmulatedTransport(inner, link, is_kv=False)
    assert isinstance(target.get(timeout=5), Connected)

    sent_at = time.monotonic()
    transport.publish(Publication("a/topic", b"one"))
    transport.publish(Publication("a/topic", b"two"))
    arrived = [target.get(timeout=5), target.get(timeout=5)]

    assert time.monotonic() - sent_at >= 0.04
    assert [event.payload for event in arrived if isinstance(event, Received)] == [b"one", b"two"]
    transport.close()
    link.close()


def test_a_message_on_the_way_when_the_device_leaves_is_lost_quietly() -> None:
    broker = MemoryBroker()
    link = EmulatedLink(LinkSchedule(0.01, None))
    inner = MemoryTransport(broker, "device")
    inner.connect()
    transport = EmulatedTransport(inner, link, is_kv=False)
    transport.publish(Publication("a/topic", b"late"))
    transport.close()
    delivered: queue.SimpleQueue[str] = queue.SimpleQueue()
    link.send("up", 0, lambda: delivered.put("later"), is_kv=False)
    assert delivered.get(timeout=5) == "later"
    assert broker.num_published == 0
    link.close()
