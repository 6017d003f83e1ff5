"""Runs whose outcome can be computed by hand, or by queueing theory."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from broker.control import Link
from broker.plan import Role
from planner.simulation import (
    GroupRule,
    KvReservation,
    KvTransfer,
    Network,
    SimReplica,
    SimRequest,
)
from planner.simulation.routing import LEAST_FINISH, PAPER_JSQ, SPLITWISE
from planner.simulation.tables import LinearDecode, prefill_rate
from planner.simulation.workloads import constant, fixed_period, poisson, requests
from tests.planner.simulation.scenes import at, both, only, replica, run, stage


def test_a_lone_request_takes_its_prefill_and_one_step_per_further_token() -> None:
    record = only(run([both(base=0.02, row=0.005)], at(3.0, prompt=50, answer=11)))

    assert record.prefill_start == pytest.approx(3.0)
    assert record.ttft_seconds == pytest.approx(0.5)
    assert record.waiting_seconds == pytest.approx(0.5)
    assert record.end_to_end_seconds == pytest.approx(0.5 + 10 * 0.025)
    assert record.tpot_seconds == pytest.approx(0.025)
    assert record.decode_speed == pytest.approx(40)
    assert record.prefill_speed == pytest.approx(100)


def test_an_answer_of_one_token_ends_with_prefill() -> None:
    record = only(run([both()], at(0.0, prompt=100, answer=1)))

    assert record.finish == pytest.approx(record.first_token) == pytest.approx(1.0)
    assert record.decode_start == record.finish
    assert record.generated_tokens == 1
    assert np.isnan(record.decode_speed)


def test_a_context_that_grows_makes_every_step_a_little_slower() -> None:
    seconds = 1e-5
    replicas = [both(base=0.0, row=0.0, position=seconds)]

    record = only(run(replicas, at(0.0, prompt=1000, answer=601)))

    # Step k of 600 attends to 1000 prompt positions, the first token and k later ones.
    expected = seconds * (600 * 1001 + 600 * 599 / 2)
    assert record.decode_seconds == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_a_saturated_replica_delivers_the_rate_of_its_slots(slots: int) -> None:
    replicas = [
        replica("p", Role.PREFILL, stage("a")),
        replica("d", Role.DECODE, stage("b", base=0.02, row=0.004), slots=slots),
    ]

    result = run(replicas, at(*[0.0] * (40 * slots), answer=101))

    rate = slots / (0.02 + 0.004 * slots)
    made = 40 * slots * 100
    # The very first row has one round to itself.
    assert made / result.duration_seconds == pytest.approx(rate, rel=2e-4)
    busy = {use.replica: use.utilisation for use in result.stages}
    assert busy["d"] == pytest.approx(1.0)


def test_a_faster_stage_of_a_ring_is_busy_for_its_share_of_the_slowest_ones_turns() -> None:
    ring = replica(
        "d",
        Role.DECODE,
        stage("fast", base=0.01, row=0.0),
        stage("slow", base=0.04, row=0.0),
        slots=2,
        groups=GroupRule.MICRO_BATCHES,
    )

    result = run([replica("p", Role.PREFILL, stage("a")), ring], at(*[0.0] * 100, answer=101))

    # Two groups of one row go round at once: a round is two turns of the slow stage.
    made = 100 * 100
    assert made / result.duration_seconds == pytest.approx(2 / 0.08, rel=1e-3)
    busy = {use.device: use.utilisation for use in result.stages}
    assert busy["slow"] == pytest.approx(1.0, rel=1e-3)
    assert busy["fast"] == pytest.approx(0.25, rel=1e-3)


def test_queueing_for_prefill_follows_the_formula_of_an_m_d_1_queue() -> None:
    rng = np.random.default_rng(7)
    load, service = 0.7, 0.5
    arriving = requests(poisson(20_000, load / service, rng), constant(50), constant(1), rng)
    server = replica("p", Role.PREFILL, stage("a", prompt=prefill_rate(100)))

    records = run([server], arriving).records

    waited = np.mean([record.prefill_start - record.arrival for record in records])
    # Pollaczek and Khinchine: rho / (2 (1 - rho)) services of constant length.
    assert waited == pytest.approx(load / (2 * (1 - load)) * service, rel=0.06)


@pytest.mark.parametrize(
    ("prompt", "answer", "period"), [(500, 101, 0.5), (3000, 101, 1.0), (1000, 301, 2.0)]
)
def test_waiting_grows_by_the_slower_phase_less_the_period(
    prompt: int, answer: int, period: float
) -> None:
    replicas = [
        replica("p", Role.PREFILL, stage("a", prompt=prefill_rate(1000)), chunk_tokens=128),
        replica("d", Role.DECODE, stage("b", base=0.03, row=0.01), slots=3),
    ]
    arriving = requests(
        fixed_period(200, period), constant(prompt), constant(answer), np.random.default_rng(0)
    )

    records = run(replicas, arriving).records

    decode_rate = 3 / 0.06
    slope = max(prompt / 1000, (answer - 1) / decode_rate) - period
    waits = [record.waiting_seconds for record in records[50:150]]
    measured = np.polyfit(np.arange(100), waits, 1)[0]
    assert measured == pytest.approx(slope, rel=0.02)


def test_an_underloaded_fog_has_no_backlog() -> None:
    replicas = [
        replica("p", Role.PREFILL, stage("a", prompt=prefill_rate(1000))),
        replica("d", Role.DECODE, stage("b", base=0.03, row=0.01), slots=3),
    ]

    records = run(replicas, at(*np.arange(100) * 3.0, prompt=500, answer=101)).records

    # Prefill, and at most a round of three rows until the next one begins.
    assert all(0.5 - 1e-9 <= record.waiting_seconds <= 0.5 + 0.06 for record in records)


def test_chunks_of_a_prompt_overlap_in_the_stages_of_a_pipeline() -> None:
    stages = [stage(d, prompt=prefill_rate(rate)) for d, rate in (("a", 100), ("b", 50))]
    pipeline = replica("p", Role.PREFILL, *stages, chunk_tokens=10)

    record = only(run([pipeline], at(0.0, prompt=100, answer=1)))

    # Ten chunks at the slower stage's 0.2 s, behind the first one's 0.1 s.
    assert record.ttft_seconds == pytest.approx(0.1 + 10 * 0.2)


def test_a_hop_delays_every_chunk_and_its_bytes_take_turns_on_the_link() -> None:
    first = stage("a", prompt=prefill_rate(1000))
    second = stage("b", prompt=prefill_rate(1000), hop_seconds=0.5, hop_row_seconds=0.01)
    pipeline = replica("p", Role.PREFILL, first, second, chunk_tokens=10)

    record = only(run([pipeline], at(0.0, prompt=100, answer=1)))

    # The link, 0.1 s per chunk, is the slowest; around it two stages of 0.01 s.
    assert record.ttft_seconds == pytest.approx(0.01 + 0.5 + 10 * 0.1 + 0.01)


def test_beside_answers_prompts_and_steps_take_twice_their_time() -> None:
    one = both(base=0.03, row=0.0, chunk_tokens=10)
    # The second prompt arrives while the first answer is under way.
    arriving = [SimRequest(0.0, 10, 101), SimRequest(0.1 + 0.03 * 20, 100, 1)]

    first, second = run([one], arriving).records

    # Slices as long as steps: ten chunks of 0.1 s take 2 s, in which 34 rounds begin.
    assert second.ttft_seconds == pytest.approx(2 * 10 * 0.1)
    assert first.decode_seconds == pytest.approx((100 + 34) * 0.03)


def test_chunks_between_the_groups_of_a_ring_share_its_slowest_stage() -> None:
    stages = [stage(d, prompt=prefill_rate(100), base=0.05, row=0.0) for d in ("a", "b")]
    ring = replica(
        "r", Role.BOTH, *stages, chunk_tokens=10, slots=2, groups=GroupRule.MICRO_BATCHES
    )
    arriving = [*at(0.0, 0.0, prompt=10, answer=201), SimRequest(5.0, 40, 1)]

    third = run([ring], arriving).records[2]

    # Two groups of 0.05 s and a slice after each fill a stage's round of 0.2 s, so chunks of
    # 0.1 s take 0.2 s. The first begins at the end of the round under way, and the last
    # enters the second stage 0.8 s after that.
    assert 1.0 <= third.ttft_seconds <= 1.0 + 0.1 + 1e-9


def test_slots_are_refilled_at_the_end_of_a_round() -> None:
    replicas = [
        replica("p", Role.PREFILL, stage("a")),
        replica("d", Role.DECODE, stage("b", base=0.1, row=0.0), slots=1),
    ]

    first, second = run(replicas, at(0.0, 0.0, answer=11)).records

    assert first.finish == pytest.approx(1.0)
    assert second.decode_start == pytest.approx(1.0)
    assert second.finish == pytest.approx(2.0)


def test_without_slots_only_memory_limits_the_rows() -> None:
    prefill = replica("p", Role.PREFILL, stage("a"))
    free = replica("d", Role.DECODE, stage("b"), slots=None)
    tight = replica("d", Role.DECODE, stage("b"), slots=None, kv_tokens=350)

    for decode, most in ((free, 12), (tight, 3)):
        records = run([prefill, decode], at(*[0.0] * 12, answer=11), routing=SPLITWISE).records
        edges = sorted(
            [(r.decode_start, 1) for r in records] + [(r.finish, -1) for r in records],
        )
        assert max(np.cumsum([change for _, change in edges])) == most


def test_memory_that_is_full_sends_the_youngest_back_and_everybody_finishes() -> None:
    one = both(slots=4, kv_tokens=400, chunk_tokens=64)

    result = run(
        [one],
        at(0.0, 0.01, 0.02, 0.03, prompt=60, answer=120),
        routing=LEAST_FINISH,
        reservation=KvReservation.GROWING,
    )

    assert all(record.generated_tokens == 120 for record in result.records)
    assert result.records[0].attempts == 1
    assert max(record.attempts for record in result.records) > 1


def test_a_request_that_fits_nowhere_is_refused_and_others_are_served() -> None:
    result = run([both(kv_tokens=200)], [*at(0.0, prompt=500), *at(0.1, prompt=100)])

    assert [record.is_refused for record in result.records] == [True, False]
    assert result.summary().num_refused == 1
    assert result.summary().num_finished == 1


# --- KV transfer --------------------------------------------------------------------------

LINK = Link(latency_seconds=0.01, bytes_per_second=1000.0)


def _pair() -> list[SimReplica]:
    return [
        replica("p", Role.PREFILL, stage("a", prompt=prefill_rate(100)), chunk_tokens=10),
        replica("d", Role.DECODE, stage("b", base=0.1, row=0.0), slots=9),
    ]


def _network(transfer: KvTransfer, **changes: Any) -> Network:
    return Network(links={"a": LINK, "b": LINK}, transfer=transfer, **changes)


def test_a_serialized_transfer_stands_between_prefill_and_decode() -> None:
    result = run(
        _pair(),
        at(0.0),
        network=_network(KvTransfer.SERIALIZED),
        kv_bytes_per_token=5.0,
    )

    record = only(result)
    assert record.first_token == pytest.approx(1.0)
    assert record.decode_start == pytest.approx(1.0 + 0.5 + 0.02)
    assert result.kv_bytes_moved == pytest.approx(500)


@pytest.mark.parametrize(
    ("transfer", "exposed"),
    [
        # One of ten chunks is left over, its 50 bytes take 0.05 s.
        (KvTransfer.BY_CHUNK, 0.05 + 0.02),
        # One of four layers of it.
        (KvTransfer.BY_LAYER, 0.0125 + 0.02),
    ],
)
def test_an_overlapped_transfer_leaves_only_its_last_piece(
    transfer: KvTransfer, exposed: float
) -> None:
    record = only(
        run(
            _pair(),
            at(0.0),
            network=_network(transfer),
            kv_bytes_per_token=5.0,
            num_layers=4,
        )
    )

    assert record.decode_start - record.first_token == pytest.approx(exposed)


def test_a_transfer_longer_than_prefill_is_exposed_by_the_difference() -> None:
    record = only(
        run(
            _pair(),
            at(0.0),
            network=_network(KvTransfer.BY_CHUNK, residue_seconds=0.25),
            kv_bytes_per_token=30.0,
        )
    )

    # 3000 bytes from the end of the first chunk on, at 1000 per second.
    assert record.decode_start == pytest.approx(0.1 + 3.0 + 0.02 + 0.25)


def test_short_prompts_are_sent_after_prefill() -> None:
    network = _network(KvTransfer.BY_LAYER, serialized_below_tokens=512)

    record = only(run(_pair(), at(0.0), network=network, kv_bytes_per_token=5.0))

    assert record.decode_start - record.first_token == pytest.approx(0.5 + 0.02)


def test_two_transfers_share_the_receivers_link() -> None:
    replicas = [
        replica("p", Role.PREFILL, stage("a", prompt=prefill_rate(100))),
        replica("q", Role.PREFILL, stage("c", prompt=prefill_rate(100))),
        replica("d", Role.DECODE, stage("b", base=0.1, row=0.0), slots=9),
    ]
    links = dict.fromkeys("abc", LINK)

    records = run(
        replicas,
        at(0.0, 0.0),
        network=Network(links=links, transfer=KvTransfer.SERIALIZED),
        kv_bytes_per_token=5.0,
    ).records

    assert [r.prefill_replica for r in records] == ["p", "q"]
    assert [r.decode_start for r in records] == pytest.approx([1.0 + 1.0 + 0.02] * 2)


def test_a_replica_that_does_both_moves_no_kv() -> None:
    result = run([both()], at(0.0, 0.5, 1.0), kv_bytes_per_token=1e6, routing=PAPER_JSQ)

    assert result.kv_bytes_moved == 0
    assert all(r.prefill_replica == r.decode_replica for r in result.records)


# --- model error --------------------------------------------------------------------------


def test_an_error_of_the_model_stretches_what_happens_and_not_what_routers_believe() -> None:
    planned = both("a", base=0.02, row=0.0)
    twice = planned.with_factors(prefill=2.0, decode=3.0)

    record = only(run([twice], at(0.0, answer=11)))

    assert record.ttft_seconds == pytest.approx(2.0)
    assert record.decode_seconds == pytest.approx(10 * 0.06)


def test_routers_that_measure_avoid_a_replica_that_is_slower_than_planned() -> None:
    slow = both("a", base=0.02).with_factors(prefill=50.0)
    fast = both("b", base=0.021)

    def replicas_used(knows_speeds: bool) -> list[str]:
        routing = replace(LEAST_FINISH, knows_speeds=knows_speeds)
        result = run([slow, fast], at(0.0, 500.0), routing=routing)
        return [record.prefill_replica for record in result.records]

    assert replicas_used(knows_speeds=False) == ["a", "a"]
    assert replicas_used(knows_speeds=True) == ["b", "b"]


def test_any_hashable_function_serves_as_a_table() -> None:
    def steps(rows: int, context: float) -> float:
        return 0.01 * rows + 1e-6 * context

    def same(rows: int, context: float) -> float:
        return LinearDecode(0.0, 0.01, 1e-6 / max(rows, 1))(rows, context)

    results = []
    for function in (steps, same):
        one = both("r")
        changed = replace(one, stages=(replace(one.stages[0], decode_seconds=function),))
        results.append([r.finish for r in run([changed], at(0.0, 0.1, answer=300)).records])

    assert results[0] == pytest.approx(results[1])
