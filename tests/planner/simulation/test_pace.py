"""Rounds in closed form against a pipeline that is played stage by stage."""

from __future__ import annotations

import heapq
from dataclasses import replace

import numpy as np
import pytest

from broker.grouping import best_grouping
from broker.plan import BatchSeconds, LayerRange, Role, Stage
from planner.simulation import GroupRule, SimReplica
from planner.simulation.pace import pace_of, planned_pace
from planner.simulation.tables import prefill_rate
from tests.planner.simulation.scenes import replica, stage


def played_round_seconds(
    stage_seconds: list[float], hop_seconds: list[float], num_groups: int, num_rounds: int = 400
) -> float:
    """Send groups round a ring of first in, first out stages; return the mean round, late on."""
    num_stages = len(stage_seconds)
    free = [0.0] * num_stages
    events = [(0.0, group, 0, 0) for group in range(num_groups)]
    ends: list[float] = []
    while events:
        now, group, at, rounds = heapq.heappop(events)
        done = max(now, free[at]) + stage_seconds[at]
        free[at] = done
        following = (at + 1) % num_stages
        arrives = done + (hop_seconds[following] if num_stages > 1 else 0.0)
        if following == 0:
            rounds += 1
            if group == 0:
                ends.append(arrives)
            if rounds == num_rounds:
                continue
        heapq.heappush(events, (arrives, group, following, rounds))
    late = ends[num_rounds // 2 :]
    return (late[-1] - late[0]) / (len(late) - 1)


@pytest.mark.parametrize("seed", range(30))
def test_a_round_takes_what_a_played_ring_of_equal_groups_takes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_stages = int(rng.integers(1, 5))
    group_rows = int(rng.integers(1, 4))
    hop = float(rng.choice([0.0, 0.002, 0.05]))
    stages = [
        stage(f"d{i}", base=float(rng.uniform(0.001, 0.02)), row=0.002, hop_seconds=hop)
        for i in range(num_stages)
    ]
    ring = replica("r", Role.DECODE, *stages, groups=GroupRule.MICRO_BATCHES, slots=32)
    pace = pace_of(ring, (1.0,) * num_stages)

    num_rows = group_rows * num_stages
    groups, rows = pace.groups(num_rows)

    assert (groups, rows) == (num_stages, group_rows)
    times = [one.decode_seconds(rows, 0) for one in stages]
    played = played_round_seconds(times, [hop] * num_stages, groups)
    assert pace.round_seconds(num_rows, 0) == pytest.approx(played, rel=1e-9)


def test_the_best_groups_are_those_that_masters_form() -> None:
    ring = replica(
        "r", Role.DECODE, *(stage(d, base=0.004, row=0.003, hop_seconds=0.01) for d in "abc")
    )
    ring = replace(ring, slots=16)
    pace = pace_of(ring, (1.0,) * 3)
    as_planned = [
        Stage(
            device=one.device,
            layers=LayerRange(index, index + 1),
            embedding=index == 0,
            head=index == 2,
            predicted_seconds=0.0,
            decode_seconds=[BatchSeconds(b, one.decode_seconds(b, 0)) for b in (1, 2, 4, 8, 16)],
            hop_seconds=0.01,
        )
        for index, one in enumerate(ring.stages)
    ]

    for num_rows in range(1, 17):
        best = best_grouping(as_planned, num_rows)
        assert pace.groups(num_rows) == (best.num_groups, best.group_rows)
        assert pace.round_seconds(num_rows, 0) == pytest.approx(best.step_seconds)


def test_the_papers_step_is_every_stage_at_the_slowest_ones_pace() -> None:
    stages = [stage("a", base=0.01, row=0.002), stage("b", base=0.03, row=0.004)]
    ring = replica("r", Role.DECODE, *stages, groups=GroupRule.PAPER, slots=10)

    assert pace_of(ring, (1.0, 1.0)).round_seconds(10, 0) == pytest.approx(2 * (0.03 + 5 * 0.004))
    assert pace_of(ring, (4.0, 1.0)).round_seconds(10, 0) == pytest.approx(2 * 4 * (0.01 + 0.01))


def _ring(seed: int) -> SimReplica:
    rng = np.random.default_rng(seed)
    position = float(rng.choice([0.0, 1e-6, 3e-5]))
    stages = [stage(d, position=position * (i + 1), hop_seconds=0.001) for i, d in enumerate("abc")]
    return replica("r", Role.BOTH, *stages[: int(rng.integers(1, 4))], slots=12)


@pytest.mark.parametrize("seed", range(10))
def test_a_run_of_rounds_is_the_sum_of_its_rounds(seed: int) -> None:
    ring = _ring(seed)
    pace = pace_of(ring, (1.5,) * len(ring.stages))
    rng = np.random.default_rng(seed)
    rows, context, rounds = int(rng.integers(1, 12)), float(rng.uniform(1, 900)), 700

    one_by_one = sum(pace.run_seconds(rows, context + k, 1) for k in range(rounds))

    assert pace.run_seconds(rows, context, rounds) == pytest.approx(one_by_one, rel=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_rounds_until_a_moment_are_the_fewest_that_reach_it(seed: int) -> None:
    ring = _ring(seed)
    pace = pace_of(ring, (1.0,) * len(ring.stages))
    for seconds in (0.0, 0.001, 0.5, 3.0, 7.77):
        rounds = pace.rounds_until(5, 300.5, seconds, 10_000)
        assert pace.run_seconds(5, 300.5, rounds) >= seconds - 1e-8
        if rounds > 1:
            assert pace.run_seconds(5, 300.5, rounds - 1) < seconds
    assert pace.rounds_until(5, 300.5, 1e9, 17) == 17


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        # A slice as long as the step of 0.05 s: half of the time is left for chunks.
        ((0, 8), (0.1, 2.0)),
        # A single layer cannot be cut: the chunk of 0.1 s and the step, one after the other.
        ((0, 1), (0.15, 1.5)),
    ],
)
def test_a_mixed_round_of_one_stage_is_a_step_and_a_slice(
    layers: tuple[int, int], expected: tuple[float, float]
) -> None:
    only = stage("a", prompt=prefill_rate(100), base=0.03, row=0.01)
    pace = pace_of(replica("r", Role.BOTH, replace(only, layers=layers)), (1.0,))

    seconds, stretch = pace.mixed_round(2, 0.0, pace.chunk_seconds(10, 0))

    assert (seconds, *stretch) == pytest.approx(expected)


def test_a_group_finds_half_a_slice_at_each_stage_of_its_way() -> None:
    stages = [
        stage(d, prompt=prefill_rate(100), base=0.01, row=0.0, hop_seconds=0.02) for d in "abc"
    ]
    ring = replica("r", Role.BOTH, *stages, slots=1)
    pace = pace_of(ring, (1.0,) * 3)

    seconds, stretch = pace.mixed_round(1, 0.0, pace.chunk_seconds(10, 0))

    # Three steps, three hops, and slices as long as steps; a stage has all but its step left.
    assert seconds == pytest.approx(3 * (0.01 + 0.02) + 3 * 0.01 / 2)
    assert stretch == pytest.approx([0.105 / 0.095] * 3)


def test_routers_plan_without_the_errors_of_the_model() -> None:
    true = _ring(1).with_factors(prefill=3.0, decode=2.0)
    ones = (1.0,) * len(true.stages)

    planned = planned_pace(true)

    assert pace_of(true, ones).round_seconds(3, 0) > planned.round_seconds(3, 0) * 1.2
    assert planned.round_seconds(3, 0) == planned_pace(_ring(1)).round_seconds(3, 0)


def test_a_time_that_is_not_a_number_names_its_device() -> None:
    broken = replica("r", Role.BOTH, stage("sick", base=float("nan")))

    with pytest.raises(ValueError, match="sick"):
        pace_of(broken, (1.0,)).groups(2)
