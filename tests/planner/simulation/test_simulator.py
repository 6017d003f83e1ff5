"""What holds of every run: nothing is lost, nothing is counted twice, equal seeds are equal."""

from __future__ import annotations

from dataclasses import replace
from math import isnan

import numpy as np
import pytest

from broker.plan import Role
from planner.simulation import (
    DeviceLoss,
    DeviceSlowdown,
    KvReservation,
    KvTransfer,
    PlanChange,
    Result,
    Scenario,
    Sharing,
    simulate,
)
from planner.simulation.routing import (
    JSQ_COUNT,
    LEAST_ADDED,
    LEAST_FINISH,
    PAPER_JSQ,
    SPLITWISE,
    SPLITWISE_MIXED,
    SPLITWISE_SPEED,
    Bind,
    Routing,
)
from planner.simulation.tables import prefill_rate
from tests.planner.simulation.scenes import at, both, random_scenario, replica, run, stage

AFTER_PREFILL = Routing(bind=Bind.AFTER_PREFILL)
ROUTINGS = {
    "paper": PAPER_JSQ,
    "count": JSQ_COUNT,
    "after-prefill": AFTER_PREFILL,
    "splitwise": SPLITWISE,
    "splitwise-speed": SPLITWISE_SPEED,
    "splitwise-mixed": SPLITWISE_MIXED,
    "least-finish": LEAST_FINISH,
    "least-added": LEAST_ADDED,
    "least-added-measuring": replace(LEAST_ADDED, knows_speeds=True),
}


def assert_sound(scenario: Scenario, result: Result) -> None:
    """Every token was made once, in order, and no stage worked more than all the time."""
    for request, record in zip(scenario.requests, result.records, strict=True):
        if record.is_refused:
            assert isnan(record.finish)
            continue
        assert record.is_finished
        assert record.generated_tokens == request.answer_tokens
        # Prefill makes one token in each attempt that it completes.
        by_prefill = record.generated_tokens - record.decode_tokens
        assert 1 <= by_prefill <= record.attempts
        assert request.arrival_seconds <= record.prefill_start <= record.first_token
        assert record.first_token <= record.decode_start <= record.finish
        assert record.decode_seconds <= record.finish - record.decode_start + 1e-9
        if record.attempts == 1:
            assert record.decode_seconds == pytest.approx(record.finish - record.decode_start)
            assert record.prefill_tokens == request.prompt_tokens
    for use in result.stages:
        assert 0 <= use.utilisation <= 1 + 1e-9
    moved = result.kv_bytes_moved / scenario.kv_bytes_per_token
    assert -1e-6 <= moved <= sum(record.prefill_tokens for record in result.records) + 1e-6


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("seed", range(8))
def test_every_token_is_made_once(name: str, seed: int) -> None:
    scenario = random_scenario(
        seed,
        routing=ROUTINGS[name],
        reservation=list(KvReservation)[seed % 2],
    )

    assert_sound(scenario, simulate(scenario))


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("seed", range(6))
def test_every_token_is_made_once_although_devices_fail(name: str, seed: int) -> None:
    scenario = random_scenario(
        seed,
        routing=ROUTINGS[name],
        faults=(
            DeviceSlowdown(1.0, "d10", 3.0),
            DeviceLoss(5.0, "d00", notice_seconds=0.5),
            DeviceSlowdown(8.0, "d10", 1.0),
        ),
    )

    result = simulate(scenario)

    assert_sound(scenario, result)
    lost = [use for use in result.stages if use.device == "d00"]
    assert len(lost) == 1


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("seed", range(8))
def test_collapsed_rounds_equal_rounds_taken_one_by_one(name: str, seed: int) -> None:
    scenario = random_scenario(
        seed, routing=ROUTINGS[name], faults=(DeviceSlowdown(4.0, "d00", 1.7),)
    )

    collapsed = simulate(scenario)
    stepwise = simulate(replace(scenario, stepwise=True))

    for one, other in zip(collapsed.records, stepwise.records, strict=True):
        assert one.decode_replica == other.decode_replica
        for value in ("prefill_start", "first_token", "decode_start", "finish"):
            assert getattr(one, value) == pytest.approx(
                getattr(other, value), abs=1e-6, rel=1e-9, nan_ok=True
            )
    for use, same in zip(collapsed.stages, stepwise.stages, strict=True):
        assert use.busy_seconds == pytest.approx(same.busy_seconds, rel=1e-3)


@pytest.mark.parametrize("sharing", list(Sharing))
@pytest.mark.parametrize("transfer", list(KvTransfer))
def test_every_way_to_move_kv_delivers_it(sharing: Sharing, transfer: KvTransfer) -> None:
    plain = random_scenario(4)
    network = replace(
        plain.network, sharing=sharing, transfer=transfer, switch_bytes_per_second=2e5
    )
    scenario = replace(plain, network=network)

    result = simulate(scenario)

    assert_sound(scenario, result)
    assert result.kv_bytes_moved > 0


def test_equal_scenarios_give_equal_results() -> None:
    first, second = (simulate(random_scenario(5, routing=LEAST_FINISH)) for _ in range(2))

    assert first == second


# --- what goes wrong ----------------------------------------------------------------------


def test_a_lost_device_sends_its_requests_back_with_their_tokens() -> None:
    replicas = [both("a", base=0.1, row=0.0), both("b", base=0.3, row=0.0)]

    result = run(
        replicas, at(0.0, prompt=100, answer=101), faults=(DeviceLoss(6.05, "a-device", 2.0),)
    )

    (record,) = result.records
    # 1 s of prefill and fifty steps; then prompt and 51 tokens again on the other.
    assert record.attempts == 2
    assert (record.prefill_replica, record.decode_replica) == ("b", "b")
    assert record.prefill_tokens == 100 + 151
    assert record.decode_tokens == 50 + 49
    assert record.finish == pytest.approx(6.05 + 2.0 + 1.51 + 49 * 0.3)


def test_a_fog_without_its_only_decode_replica_decodes_where_it_prefills() -> None:
    replicas = [
        replica("p", Role.PREFILL, stage("a", prompt=prefill_rate(100))),
        replica("d", Role.DECODE, stage("b")),
    ]

    result = run(replicas, at(0.0, 5.0), faults=(DeviceLoss(2.0, "b"),))

    assert [record.decode_replica for record in result.records] == ["d", "p"]
    assert all(record.is_finished for record in result.records)


def test_requests_wait_for_a_new_plan_when_no_replica_is_left() -> None:
    spare = both("new")

    without = run([both("a")], at(0.0, answer=1000), faults=(DeviceLoss(2.0, "a-device"),))
    faults = (DeviceLoss(2.0, "a-device"), PlanChange(9.0, (spare,)))
    replaced = run([both("a")], at(0.0, 4.0, answer=1000), faults=faults)

    assert without.summary().num_unfinished == 1
    assert [r.prefill_replica for r in replaced.records] == ["new", "new"]
    assert all(r.is_finished for r in replaced.records)
    assert replaced.records[1].prefill_start >= 9.0


def test_a_run_ends_with_its_last_token_whatever_goes_wrong_afterwards() -> None:
    replicas = [both("a"), both("b")]
    faults = (DeviceLoss(3600.0, "a-device"), PlanChange(7200.0, (both("b"),)))

    quiet = run(replicas, at(0.0, 1.0, answer=50))
    late = run(replicas, at(0.0, 1.0, answer=50), faults=faults)

    assert late.duration_seconds == max(record.finish for record in late.records)
    assert late.summary() == quiet.summary()


def test_replicas_that_a_new_plan_leaves_out_finish_what_they_have() -> None:
    result = run([both("old")], at(0.0, 3.0, answer=501), faults=(PlanChange(2.0, (both("new"),)),))

    assert [record.decode_replica for record in result.records] == ["old", "new"]
    assert [record.attempts for record in result.records] == [1, 1]


def test_a_new_plan_may_not_use_a_lost_device() -> None:
    faults = (DeviceLoss(1.0, "a-device"), PlanChange(2.0, (both("new"), both("a"))))

    with pytest.raises(ValueError, match="a-device"):
        run([both("a"), both("b")], at(0.0), faults=faults)


def test_a_slow_device_takes_effect_at_the_end_of_the_round_in_progress() -> None:
    one = both(base=0.1, row=0.0)

    (record,) = run(
        [one],
        at(0.0, prompt=100, answer=101),
        faults=(DeviceSlowdown(1.0 + 3.95, "r-device", 2.0),),
    ).records

    # Forty rounds at 0.1 s, the fortieth being under way, then sixty at 0.2 s.
    assert record.decode_seconds == pytest.approx(40 * 0.1 + 60 * 0.2)


def test_a_slow_device_slows_the_chunks_that_have_not_entered() -> None:
    one = both(chunk_tokens=10)

    (record,) = run(
        [one], at(0.0, prompt=100, answer=1), faults=(DeviceSlowdown(0.55, "r-device", 3.0),)
    ).records

    assert record.ttft_seconds == pytest.approx(0.6 + 4 * 0.3)


def test_replicas_full_of_each_others_prompts_are_not_stuck() -> None:
    # Each prefills what the other is to decode, and neither has room for an answer besides.
    replicas = [
        replica("p", Role.PREFILL, stage("a", prompt=prefill_rate(100)), kv_tokens=250),
        replica("d", Role.DECODE, stage("b"), kv_tokens=250, slots=2),
    ]

    result = run(replicas, at(*np.arange(12) * 0.1, prompt=100, answer=100))

    assert all(record.is_finished for record in result.records)


def test_a_flooded_prompt_pool_borrows_a_token_machine_until_it_has_drained() -> None:
    replicas = [
        replica("p", Role.PREFILL, stage("a", prompt=prefill_rate(1000))),
        replica("d", Role.DECODE, stage("b", prompt=prefill_rate(1000)), slots=8),
        replica("e", Role.DECODE, stage("c", prompt=prefill_rate(1000)), slots=8),
    ]
    arriving = at(*[0.0] * 30, 200.0, prompt=1000)

    mixed = run(replicas, arriving, routing=SPLITWISE_MIXED)
    plain = run(replicas, arriving, routing=SPLITWISE)

    prefilled = [record.prefill_replica for record in mixed.records]
    # Eight prompts fill the queue; then one token machine helps, then both.
    assert prefilled[:9] == ["p"] * 8 + ["d"]
    assert {"p", "d", "e"} == set(prefilled)
    assert prefilled[30] == "p"
    assert {record.prefill_replica for record in plain.records} == {"p"}
    assert mixed.summary().waiting.mean < plain.summary().waiting.mean / 2


# --- input --------------------------------------------------------------------------------


def test_a_scenario_needs_replicas_requests_and_different_ids() -> None:
    with pytest.raises(ValueError, match="at least one replica"):
        Scenario(replicas=(), requests=at(0.0))
    with pytest.raises(ValueError, match="at least one request"):
        Scenario(replicas=(both(),), requests=())
    with pytest.raises(ValueError, match="more than once: r"):
        Scenario(replicas=(both(), both()), requests=at(0.0))


def test_parts_of_a_scenario_refuse_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="slots must be at least 1"):
        both(slots=0)
    with pytest.raises(ValueError, match="decode_factor"):
        stage("x", decode_factor=0.0)
    with pytest.raises(ValueError, match="at least one prompt token"):
        at(0.0, prompt=0)
    with pytest.raises(ValueError, match="not at a time"):
        at(-1.0)
    with pytest.raises(ValueError, match="slow-down of d"):
        DeviceSlowdown(0.0, "d", 0.0)
    with pytest.raises(ValueError, match="chooses both machines"):
        Routing(bind=Bind.LATE, mixed_pool=SPLITWISE_MIXED.mixed_pool)
