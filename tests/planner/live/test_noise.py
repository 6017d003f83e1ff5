"""A whole planner under noise, slow devices, pressure and drift, with a simulated clock."""

from __future__ import annotations

import random
from typing import Any

import pytest

from broker.control import DeviceState, GatewayStatus
from broker.plan import Plan, PlanState, Role
from broker.telemetry import FIELDS, Telemetry
from planner.live.events import GatewaySeen
from tests.planner.live.harness import Bench, active
from tests.planner.live.noise import (
    FAST,
    STEADY,
    decisions_under_noise,
    gateway,
    noisy,
    steady_fog,
)

HALF_AN_HOUR = 1800.0


def serving(**settings: Any) -> Bench:
    bench = Bench(**settings).connect().model().join(*"abcdef").run(8)
    assert active(bench)
    return bench


def stages(plan: Plan) -> set[str]:
    return {replica.id for replica in plan.replicas}


def test_noise_is_on_every_field_of_telemetry() -> None:
    one, other = (noisy(random.Random(seed)) for seed in range(2))
    same = {name for name in FIELDS if getattr(one, name) == getattr(other, name)}
    assert STEADY.keys() == FIELDS.keys()
    # It has no size.
    assert same == {"is_charging"}


@pytest.mark.parametrize("seed", range(2))
def test_noise_of_15_percent_on_all_telemetry_changes_no_plan_in_half_an_hour(seed: int) -> None:
    bench = steady_fog()
    version = bench.plan.version
    assert decisions_under_noise(bench, random.Random(seed), HALF_AN_HOUR) == []
    assert bench.plan.version == version


def test_a_device_slowed_to_a_quarter_in_noise_is_planned_for_once_and_used_again_later() -> None:
    rng = random.Random(1)
    bench = steady_fog(**FAST)
    fastest = "a"
    first = bench.plan
    made = []
    for speed in (0.25, 1.0):
        before = bench.num_plans_made
        for _ in range(150):
            bench.telemetry = {name: noisy(rng, **FAST) for name in "bcdef"}
            bench.telemetry[fastest] = noisy(rng, **FAST, speed_ratio=speed)
            bench.run(2, step=2)
        made.append(bench.num_plans_made - before)
    assert made == [1, 1]
    slow, again = [p for p in bench.plans if is_final(p) and p.version > first.version]
    assert stages(slow) != stages(first)
    assert slow.speeds[fastest] == pytest.approx(0.25, rel=0.16)
    assert again.predicted.requests_per_second == pytest.approx(
        first.predicted.requests_per_second or 0.0, rel=0.2
    )


def is_final(plan: Plan) -> bool:
    """Whether a plan serves and is not one on the way to another."""
    return plan.state is PlanState.ACTIVE and "one replica after the other" not in plan.trigger


@pytest.mark.parametrize("ratio", [0.25, 0.1])
def test_a_slow_device_is_noticed_planned_and_switched_within_15_seconds(ratio: float) -> None:
    bench = serving()
    began = bench.now
    bench.telemetry["a"] = Telemetry(speed_ratio=ratio)
    while bench.num_plans_made < 2 or bench.control.rollout.is_changing:
        bench.run(0.5)
        assert bench.now - began < 15


@pytest.mark.parametrize("slow", ["a", "c"])
def test_after_a_switch_the_fog_serves_nearly_what_a_fresh_start_would(slow: str) -> None:
    bench = serving()
    bench.slow_down(slow, 0.25).run(20)
    fresh = Bench()
    fresh.slow_down(slow, 0.25)
    fresh.connect().model().join(*"abcdef").run(20)
    now, best = (b.plan.predicted.requests_per_second or 0.0 for b in (bench, fresh))
    assert fresh.plan.speeds == bench.plan.speeds == {slow: 0.25}
    assert now > 0.9 * best


def test_devices_that_join_a_loaded_fog_raise_it_to_nearly_what_a_fresh_start_gives() -> None:
    bench = Bench().connect().model().join(*"cdef").run(8)
    before = bench.plan.predicted.requests_per_second or 0.0
    bench.join("a", "b").run(10)
    fresh = serving()
    now, best = (b.plan.predicted.requests_per_second or 0.0 for b in (bench, fresh))
    assert now > before
    assert now > 0.9 * best


def test_waiting_for_a_core_is_no_slowness_unless_it_lasts() -> None:
    bench = serving()
    waits, runs = Telemetry(speed_ratio=1.0, core_wait_ratio=0.7), Telemetry(speed_ratio=1.0)
    for _ in range(20):
        bench.telemetry["a"] = waits
        bench.run(20)
        bench.telemetry["a"] = runs
        bench.run(40, step=2)
    assert bench.num_plans_made == 1
    bench.telemetry["a"] = waits
    bench.run(90, step=2)
    assert bench.num_plans_made == 2
    assert "a is 3.33 times slower than planned" in bench.plan.trigger


def test_a_slow_link_is_planned_for_once() -> None:
    bench = serving()
    bench.telemetry["a"] = Telemetry(link_bytes_per_second=1e6)
    bench.run(120, step=2)
    assert bench.num_plans_made == 2
    assert "the link of a has changed: rate 1.0 MB/s" in bench.plan.trigger


def test_a_fast_link_on_a_busy_host_is_a_fast_link() -> None:
    bench = serving()
    for rate, latency in ((1.8e7, 0.0019), (1e8, 0.0003), (5e7, 0.001)):
        bench.telemetry["a"] = Telemetry(link_bytes_per_second=rate, link_latency_seconds=latency)
        bench.run(60, step=2)
    assert bench.num_plans_made == 1


def test_memory_that_others_took_is_planned_for_and_used_again_when_it_is_back() -> None:
    bench = serving()
    before = stages(bench.plan)
    plenty = Telemetry(memory_available_bytes=5_000_000, memory_used_bytes=0)
    bench.telemetry["a"] = plenty
    bench.run(20)
    assert bench.num_plans_made == 1
    bench.telemetry["a"] = Telemetry(memory_available_bytes=150_000, memory_used_bytes=0)
    bench.run(20)
    assert bench.num_plans_made == 2
    assert "a cannot hold its stage any more" in bench.plan.trigger
    assert "a" not in bench.aim()
    bench.telemetry["a"] = plenty
    bench.run(60, step=2)
    assert stages(bench.plan) == before
    assert "a has 1.1 MB for the model again" in bench.plan.trigger


@pytest.mark.parametrize(
    ("pressed", "relieved", "reason"),
    [
        (
            Telemetry(battery_ratio=0.12, is_charging=False),
            Telemetry(battery_ratio=0.12, is_charging=True),
            "its battery is at 12%, the limit is 15%",
        ),
        (
            Telemetry(temperature_celsius=99.0),
            Telemetry(temperature_celsius=70.0),
            "it is at 99 °C, the limit is 95 °C",
        ),
    ],
)
def test_a_device_rests_from_heat_and_on_an_empty_battery(
    pressed: Telemetry, relieved: Telemetry, reason: str
) -> None:
    bench = serving()
    bench.telemetry["a"] = pressed
    bench.run(60, step=2)
    assert "a" not in bench.aim()
    assert any(entry.device == "a" and reason in entry.reason for entry in bench.plan.idle)
    bench.telemetry["a"] = relieved
    bench.run(400, step=2)
    assert "a" in bench.aim()
    assert bench.num_plans_made == 3


def test_a_battery_between_the_limit_and_ten_percent_more_changes_nothing() -> None:
    bench = serving()
    for charge in (0.16, 0.2, 0.16, 0.24):
        bench.telemetry["a"] = Telemetry(battery_ratio=charge)
        bench.run(120, step=2)
    assert bench.num_plans_made == 1


def test_a_device_that_must_rest_serves_on_where_nobody_can_do_without_it() -> None:
    bench = Bench().connect().model().join("a", "b", memory_bytes=1_000_000).run(8)
    before = stages(bench.plan)
    bench.telemetry["a"] = Telemetry(temperature_celsius=99.0)
    bench.run(60, step=2)
    assert stages(bench.plan) == before
    assert "no plan" in (bench.problem or "")


def test_requests_of_another_shape_lead_to_one_plan_for_their_lengths() -> None:
    bench = serving()
    for _ in range(60):
        bench.handle(gateway(200, 20))
        bench.run(5, step=2.5)
    assert bench.num_plans_made == 2
    assert (bench.plan.prompt_tokens, bench.plan.answer_tokens) == (200, 20)
    assert "200 tokens of prompt and 20 of answer, the plan is for 64 and 64" in bench.plan.trigger


def test_lengths_are_not_followed_when_a_person_says_so() -> None:
    bench = serving(follow_lengths=False)
    for _ in range(60):
        bench.handle(gateway(200, 20))
        bench.run(5, step=2.5)
    assert bench.num_plans_made == 1


def test_gateways_count_by_their_requests_and_lost_ones_not_at_all() -> None:
    bench = serving()
    lost = GatewayStatus(state=DeviceState.LOST, session=2)
    bench.handle(gateway(5000, 10, requests=200))
    bench.handle(GatewaySeen("g", lost))
    bench.run(300, step=2)
    assert bench.num_plans_made == 1


def test_a_restarted_planner_knows_what_the_plan_was_made_with() -> None:
    bench = serving()
    bench.telemetry["a"] = Telemetry(speed_ratio=0.25)
    for _ in range(30):
        bench.handle(gateway(200, 20))
        bench.run(5, step=2.5)
    version = bench.plan.version
    later = Bench(session=200)
    later.connect()
    bench.retained_for(later)
    later.telemetry["a"] = Telemetry(speed_ratio=0.25)
    later.handle(gateway(200, 20))
    later.run(300, step=2)
    assert {plan.version for plan in later.plans} <= {version}
    assert later.control.rollout.version == version


def hops(seconds: float) -> GatewaySeen:
    status = GatewayStatus(state=DeviceState.READY, session=1, hop_overhead_seconds=seconds)
    return GatewaySeen("g", status)


def test_hops_that_take_longer_than_their_links_are_planned_for_once() -> None:
    bench = serving()
    before = bench.plan.replicas[0].stages[0].hop_seconds
    rng = random.Random(1)
    for _ in range(300):
        bench.handle(hops(0.003 * rng.uniform(0.85, 1.15)))
        bench.run(2, step=2)
    assert bench.num_plans_made == 2
    assert bench.plan.hop_overhead_seconds == pytest.approx(0.003, rel=0.16)
    assert "beside its links, the plan says 0 ms" in bench.plan.trigger
    later = Bench(session=200)
    later.connect()
    bench.retained_for(later)
    later.handle(hops(0.003))
    later.run(60, step=2)
    assert later.control.rollout.version == 2
    assert {
        round(stage.hop_seconds - before, 9)
        for replica in bench.plan.replicas
        for stage in replica.stages
        if len(replica.stages) > 1
    } == {round(bench.plan.hop_overhead_seconds, 9)}


def test_less_than_a_quarter_of_a_millisecond_on_a_hop_changes_no_plan() -> None:
    bench = serving()
    for seconds in (0.0, 0.00024, 0.0001) * 20:
        bench.handle(hops(seconds))
        bench.run(10)
    assert bench.num_plans_made == 1


def test_every_decision_is_recorded_with_what_was_compared() -> None:
    bench = serving()
    bench.telemetry["a"] = Telemetry(speed_ratio=0.1)
    bench.run(10)
    first, second = bench.history.decisions
    assert (first.version, first.outcome, first.reason) == (1, "adopted", "the first plan")
    assert [c.name for c in first.considered] == ["best"]
    assert second.trigger == "a is 10 times slower than planned"
    assert [c.name for c in second.considered] == ["running", "best"]
    running, best = second.considered
    assert best.objective_seconds < running.objective_seconds
    assert second.at > first.at > 1.7e9


def test_a_plan_that_was_not_carried_out_is_recorded_as_well() -> None:
    bench = serving()
    bench.obedient = False
    bench.telemetry["a"] = Telemetry(speed_ratio=0.1)
    bench.run(7)
    bench.leave("b").run(2)
    reasons = [d.reason for d in bench.history.decisions if d.outcome == "none"]
    assert any(reason.endswith("is given up before it was active") for reason in reasons)


def test_roles_that_change_alone_move_no_weights() -> None:
    # Each holds all of the model, so prompts and answers change nothing but who does what.
    bench = Bench().connect().model().join(*"abcd", seconds=0.001, memory_bytes=4_000_000).run(8)
    assert [r.role for r in bench.plan.replicas].count(Role.PREFILL) == 2
    before, told = stages(bench.plan), dict(bench.assignments)

    bench.obedient = False  # Whoever had to load something would never be ready.
    for _ in range(60):
        bench.handle(gateway(200, 20))
        bench.run(5, step=2.5)

    assert active(bench)
    assert stages(bench.plan) == before
    assert bench.assignments == told
    assert [r.role for r in bench.plan.replicas].count(Role.PREFILL) == 3
    (record,) = (d for d in bench.history.decisions[1:] if d.version is not None)
    assert record.reason == "the same replicas are the best again"
