"""Two planners of one fog: who publishes, and what a gateway believes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import fakeredis
import pytest

from broker.codec import decode_control
from broker.control import DeviceState
from broker.memory import MemoryTransport
from broker.plan import PlannerStatus
from broker.topics import DEVICE_STATUS, PLANNER_STATUS
from broker.transport import Received
from gateway.fogview import FogView
from planner import planning
from planner.live import proposals
from planner.planning import Outcome
from tests.planner import fogs
from tests.planner.live.planner_rig import SITE, Fog, store

LEASE = f"e2llm:{SITE}:planner:lease"


class Gateway:
    """What a gateway knows of the planner, from when it started."""

    def __init__(self, fog: Fog) -> None:
        self._view = FogView()
        self._transport = MemoryTransport(fog.bus, f"gateway-{id(self)}")
        self._transport.subscribe([(PLANNER_STATUS.filter(SITE), PLANNER_STATUS.qos)])
        self._transport.connect()

    @property
    def planner(self) -> tuple[DeviceState, int]:
        """State and session of the planner, after all that has arrived."""
        while (event := self._transport.receive(0)) is not None:
            if isinstance(event, Received):
                self._view = self._view.with_planner(decode_control(event.payload, PlannerStatus))
        assert self._view.planner is not None
        return self._view.planner.state, self._view.planner.session


@pytest.fixture
def redis_client() -> Iterator[fakeredis.FakeRedis]:
    client = fakeredis.FakeRedis(decode_responses=True)
    yield client
    client.close()


@pytest.fixture
def fog(redis_client: fakeredis.FakeRedis) -> Fog:
    return Fog(store(redis_client)).start().run(5)


def standby(fog: Fog, client: fakeredis.FakeRedis | None, session: int = 200) -> Fog:
    return Fog(store(client, session), session, fog.bus)


# --- the lease ----------------------------------------------------------------------------


@pytest.fixture
def slow_search(fog: Fog, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """Planning that takes 20 s of the fog's clock, twice the lease.

    What a test puts into the list happens meanwhile, one entry per search.
    """
    search = planning.plan_outcome
    meanwhile: list[Callable[[], object]] = []

    def slow(*args: Any) -> Outcome:
        fog.now += 20
        if meanwhile:
            meanwhile.pop(0)()
        return search(*args)

    monkeypatch.setattr(proposals, "plan_outcome", slow)
    return meanwhile


def test_a_plan_found_after_the_lease_went_to_another_planner_is_not_published(
    fog: Fog, redis_client: fakeredis.FakeRedis, slow_search: list[Callable[[], object]]
) -> None:
    slow_search.append(lambda: redis_client.set(LEASE, "200"))
    before = fog.plan
    gone = before.replicas[0].stages[0].device
    fog.say(DEVICE_STATUS, fogs.status(state=DeviceState.LOST), device=gone)
    retained = fog.bus.retained
    fog.now += 1
    fog.service.step(0)
    assert slow_search == []
    assert fog.bus.retained == retained
    # Nor does it believe in its plan: when it leads again it starts from what is known.
    assert fog.service.control.rollout.current == before
    redis_client.delete(LEASE)
    assert fog.run(2).plan.version == 2


def test_a_plan_found_after_the_lease_ended_is_published_when_nobody_took_it(
    fog: Fog, redis_client: fakeredis.FakeRedis, slow_search: list[Callable[[], object]]
) -> None:
    slow_search.append(lambda: redis_client.delete(LEASE))
    gone = fog.plan.replicas[0].stages[0].device
    fog.say(DEVICE_STATUS, fogs.status(state=DeviceState.LOST), device=gone)
    fog.now += 1
    fog.service.step(0)
    assert fog.plan.version == 2
    assert redis_client.get(LEASE) == "100"


def test_a_planner_without_redis_stays_quiet_for_as_long_as_the_leader_lives(fog: Fog) -> None:
    second = standby(fog, None)
    for _ in range(120):
        second.now += 0.5
        fog.run(0.5)
        second.service.step(0)
        assert fog.retained(PLANNER_STATUS) == PlannerStatus(
            state=DeviceState.READY, session=100, redis=True
        )
    assert not second.service.control.authority.leads(second.now)


# --- what a gateway believes --------------------------------------------------------------


def test_a_standby_that_is_killed_does_not_make_the_leader_look_lost(
    fog: Fog, redis_client: fakeredis.FakeRedis
) -> None:
    gateway = Gateway(fog)
    second = standby(fog, redis_client).run(2)
    second.transport.drop()
    fog.run(1)
    assert gateway.planner == (DeviceState.READY, 100)
    assert Gateway(fog).planner == (DeviceState.READY, 100)
    fog.transport.drop()
    assert gateway.planner == (DeviceState.LOST, 100)


def test_a_planner_whose_clock_was_set_back_is_believed_alive_and_believed_dead(
    fog: Fog, redis_client: fakeredis.FakeRedis
) -> None:
    gateway = Gateway(fog)
    fog.transport.drop()
    assert gateway.planner == (DeviceState.LOST, 100)
    redis_client.delete(LEASE)
    second = standby(fog, redis_client, session=50).run(10)
    assert gateway.planner == (DeviceState.READY, 50)
    second.transport.drop()
    assert gateway.planner == (DeviceState.LOST, 50)


def test_a_late_will_of_the_predecessor_does_not_make_the_successor_look_lost(
    fog: Fog, redis_client: fakeredis.FakeRedis
) -> None:
    gateway = Gateway(fog)
    redis_client.set(LEASE, "200")
    second = standby(fog, redis_client).run(5)
    assert gateway.planner == (DeviceState.READY, 200)
    fog.transport.drop()
    assert gateway.planner == (DeviceState.READY, 200)
    second.run(1)
    assert Gateway(fog).planner == (DeviceState.READY, 200)


def test_a_standby_that_is_stopped_says_nothing(
    fog: Fog, redis_client: fakeredis.FakeRedis
) -> None:
    second = standby(fog, redis_client).run(2)
    published = fog.bus.num_published
    stop = threading.Event()
    stop.set()
    second.service.run(stop)
    assert fog.bus.num_published == published
    assert Gateway(fog).planner == (DeviceState.READY, 100)
