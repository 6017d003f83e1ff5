"""Devices that fall silent while their connections stand, and those that only have much to do."""

from __future__ import annotations

from typing import Any

import pytest

from broker.plan import LoadState
from broker.telemetry import Telemetry
from planner.live.events import BusDown, BusUp, LoadedSeen, TelemetrySeen
from planner.live.presence import Presence
from tests.planner import fogs
from tests.planner.live.harness import Bench, active


def serving(**profile: Any) -> Bench:
    bench = Bench().connect().model().join(*"abcdef", **profile)
    bench.reporting = set("abcdef")
    return bench.run(20)


def freeze(bench: Bench) -> str:
    frozen = bench.plan.replicas[0].stages[0].device
    bench.frozen.add(frozen)
    return frozen


def test_a_frozen_device_is_planned_around_long_before_its_last_will() -> None:
    bench = serving()
    frozen = freeze(bench)
    bench.run(5)
    assert bench.plan.version == 1
    bench.run(4)
    assert bench.num_plans_made == 2
    assert frozen not in bench.devices()
    assert f"{frozen} left (it has said nothing for 6 s)" in bench.plan.trigger
    assert bench.assignments[frozen].hold == []


def test_while_it_stays_frozen_nothing_more_is_planned() -> None:
    bench = serving()
    freeze(bench)
    assert bench.run(60).num_plans_made == 2


def test_a_device_that_comes_back_is_used_again_and_then_the_fog_is_at_rest() -> None:
    bench = serving()
    frozen = freeze(bench)
    bench.run(10)
    bench.frozen.clear()
    bench.run(10)
    assert bench.num_plans_made == 3
    assert bench.plan.trigger.startswith(f"{frozen} joined")
    assert bench.run(60).num_plans_made == 3


def test_a_device_may_be_silent_while_it_loads() -> None:
    bench = Bench().connect().model().join(*"abcdef")
    bench.reporting = set("abcdef")
    bench.obedient = False
    bench.run(5)
    for name, wanted in bench.assignments.items():
        loading = fogs.loaded(wanted.version, [], 1, state=LoadState.LOADING)
        bench.handle(LoadedSeen(name, loading))
    bench.run(10)
    busy = bench.plan.replicas[0].stages[0].device
    bench.reporting.discard(busy)
    bench.run(60)
    bench.load(*bench.assignments)
    bench.run(1)
    assert (bench.plan.version, active(bench)) == (1, True)
    assert busy in bench.devices()


def test_a_device_may_be_silent_while_it_measures_itself_for_another_model() -> None:
    bench = serving().model("rev-2")
    bench.join(*"bcdef", revision="rev-2")
    bench.reporting.discard("a")
    bench.run(55)
    bench.join("a", revision="rev-2").run(1)
    bench.reporting.add("a")
    bench.run(10)
    assert "a" in bench.plan.reasons
    assert not any("said nothing" in text for text in bench.decisions)


def test_a_device_whose_jobs_take_seconds_may_be_silent_for_as_long() -> None:
    bench = serving(seconds=0.2)
    slow = freeze(bench)
    bench.run(15)
    assert bench.plan.version == 1
    bench.report(slow)
    bench.run(15)
    assert bench.plan.version == 1


def test_a_planner_that_was_stopped_for_a_minute_takes_nobody_for_lost() -> None:
    bench = serving()
    bench.now += 60
    bench.look()
    bench.tick()
    assert bench.run(20).plan.version == 1


def test_after_the_broker_was_away_devices_have_time_to_come_back() -> None:
    bench = serving()
    bench.reporting.clear()
    bench.handle(BusDown())
    bench.run(30)
    bench.handle(BusUp())
    bench.run(9)
    bench.reporting = set("abcdef")
    assert bench.run(30).plan.version == 1


def test_one_that_does_not_come_back_after_the_broker_was_away_is_missed() -> None:
    bench = serving()
    bench.handle(BusDown())
    bench.handle(BusUp())
    frozen = freeze(bench)
    bench.run(20)
    assert bench.num_plans_made == 2
    assert frozen not in bench.devices()


@pytest.mark.parametrize("telemetry", [Telemetry(temperature_celsius=40.0), Telemetry()])
def test_an_agent_that_stops_says_nothing_of_the_device_it_watched(telemetry: Telemetry) -> None:
    bench = Bench().connect().model().join(*"abcdef")
    for _ in range(10):
        bench.handle(TelemetrySeen("a", telemetry))
        bench.run(2)
    assert bench.run(60).num_plans_made == 1


def test_a_step_of_the_planner_s_loop_is_at_most_a_second_of_silence() -> None:
    presence = Presence()
    for second in range(10):
        presence.step(float(second))
        presence.reported("pi", Telemetry(kv_used_tokens=0))
    presence.step(100.0)
    assert presence.silent_seconds("pi", 0.0) is None
    for second in range(101, 106):
        presence.step(float(second))
    assert presence.silent_seconds("pi", 0.0) == 6.0
    assert presence.silent_seconds("pi", 2.1) is None
