"""Splits beyond the usual: both ends on a master, host memory, a matrix of hops."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, permutations
from math import inf
from typing import Any

import pytest

from planner.splits.partition import best_split, pareto_splits
from planner.splits.routes import ring_seconds, shortest_ring
from planner.splits.split import Ends, Offload, Pace, SplitProblem


def every_split(
    num_devices: int, num_layers: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for order in permutations(range(num_devices)):
        for cuts in combinations(range(1, num_layers), num_devices - 1):
            edges = [0, *cuts, num_layers]
            yield order, tuple(b - a for a, b in pairwise(edges))


def stage_of(
    problem: SplitProblem, device: int, start: int, end: int, ends: tuple[bool, bool]
) -> float | None:
    """Return a stage's seconds, moving as few parts as must be; None when it does not fit."""
    room = problem.room_bytes(device, *ends)
    seconds = problem.ends_seconds(device, *ends) + sum(problem.layer_seconds[device][start:end])
    size = sum(problem.layer_bytes[start:end])
    offload = problem.offload
    for moved in range(end - start + 1 if offload else 1):
        freed = sum(offload.layer_bytes[start : start + moved]) if offload else 0
        if offload and freed > offload.host_bytes[device]:
            return None
        if size - freed <= room:
            extra = offload.extra_seconds[device][start : start + moved] if offload else []
            return seconds + sum(extra)
    return None


def brute_force(problem: SplitProblem, pace: Pace) -> tuple[float, float] | None:
    """Return the least (value, total) over all orders, cuts and masters."""
    values = []
    num_devices = len(problem.memory_bytes)
    for order, counts in every_split(num_devices, len(problem.layer_bytes)):
        stages: list[float | None] = []
        start = 0
        for place, (device, count) in enumerate(zip(order, counts, strict=True)):
            ends = (place == 0, place == num_devices - 1)
            if problem.ends is Ends.MASTER:
                ends = (place == 0,) * 2
            stages.append(stage_of(problem, device, start, start + count, ends))
            start += count
        fitting = [stage for stage in stages if stage is not None]
        if len(fitting) == num_devices:
            total = sum(fitting) + ring_seconds(problem.hop_seconds, order)
            values.append((pace.seconds(max(fitting), total), total))
    if not values:
        return None
    best = min(values)[0]
    return best, min(total for seconds, total in values if seconds <= best * (1 + 1e-9))


def random_problem(
    rng: random.Random, equal: bool, max_devices: int = 4, max_layers: int = 7
) -> SplitProblem:
    num_devices, num_layers = rng.randint(1, max_devices), rng.randint(4, max_layers)

    def row(low: float, high: float) -> list[float]:
        if equal:
            return [rng.uniform(low, high)] * num_layers
        return [rng.uniform(low, high) for _ in range(num_layers)]

    sizes = [rng.randint(2, 5)] * num_layers if equal else [rng.randint(2, 5) for _ in row(0, 1)]
    part = rng.randint(1, 2)
    offload = None
    if rng.random() < 0.7:
        offload = Offload(
            layer_bytes=[part] * num_layers if equal else [rng.randint(1, 2) for _ in sizes],
            extra_seconds=[row(0, 1) for _ in range(num_devices)],
            host_bytes=[rng.choice((0, 3, 100)) for _ in range(num_devices)],
        )
    hops: list[list[float]] = []
    if rng.random() < 0.5:
        hops = [[rng.uniform(0, 2) for _ in range(num_devices)] for _ in range(num_devices)]
        for d in range(num_devices):
            hops[d][d] = 0.0
    return SplitProblem(
        layer_seconds=[row(0.2, 2) for _ in range(num_devices)],
        first_seconds=[rng.uniform(0, 1) for _ in range(num_devices)],
        last_seconds=[rng.uniform(0, 2) for _ in range(num_devices)],
        layer_bytes=sizes,
        first_bytes=rng.randint(1, 3),
        last_bytes=rng.randint(1, 4),
        shared_bytes=rng.choice((0, 1)),
        memory_bytes=[rng.randint(4, 22) for _ in range(num_devices)],
        ends=rng.choice((Ends.CHAIN, Ends.MASTER)),
        stage_seconds=rng.choice(([], [rng.uniform(0, 0.5) for _ in range(num_devices)])),
        offload=offload,
        hop_seconds=hops,
    )


@pytest.mark.parametrize("equal", [True, False])
def test_the_best_split_equals_brute_force_under_every_convention(equal: bool) -> None:
    rng = random.Random(29)
    feasible = offloading = 0
    for _ in range(300 if equal else 120):
        problem = random_problem(rng, equal, 4 if equal else 3)
        pace = rng.choice((Pace(), Pace(laps=rng.randint(1, 4), weight=1.0, extra_seconds=0.3)))
        expected, found = brute_force(problem, pace), best_split(problem, pace)
        if expected is None:
            assert found is None, problem
            continue
        feasible += 1
        assert found is not None, problem
        assert found.seconds == pytest.approx(expected[0], rel=1e-9), problem
        assert found.total == pytest.approx(expected[1], rel=1e-9), problem
        offloading += sum(found.offloads) > 0
    assert feasible > 60
    assert offloading > 10


def with_idle(num_devices: int, num_layers: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """Yield every order of (device, layers) in which devices may be left without layers."""
    for size in range(1, min(num_devices, num_layers) + 1):
        for group in combinations(range(num_devices), size):
            for order, counts in every_split(size, num_layers):
                yield tuple((group[d], n) for d, n in zip(order, counts, strict=True))


def value_of(problem: SplitProblem, pace: Pace, stages: Sequence[tuple[int, int]]) -> float:
    """Return what a pipeline of (device, layers) is worth by first principles, or infinity."""
    seconds, start = [], 0
    for place, (device, count) in enumerate(stages):
        ends = (place == 0, place == len(stages) - 1)
        if problem.ends is Ends.MASTER:
            ends = (place == 0,) * 2
        stage = stage_of(problem, device, start, start + count, ends)
        if stage is None:
            return inf
        seconds.append(stage)
        start += count
    ring = ring_seconds(problem.hop_seconds, [device for device, _ in stages])
    return pace.seconds(max(seconds), sum(seconds) + ring)


def of_group(problem: SplitProblem, group: Sequence[int]) -> SplitProblem:
    """Return the problem of some of the devices; the others are idle."""

    def some(rows: Sequence[Any]) -> list[Any]:
        return [rows[d] for d in group] if rows else []

    offload = problem.offload
    return replace(
        problem,
        layer_seconds=some(problem.layer_seconds),
        first_seconds=some(problem.first_seconds),
        last_seconds=some(problem.last_seconds),
        memory_bytes=some(problem.memory_bytes),
        stage_seconds=some(problem.stage_seconds),
        hop_seconds=[some(problem.hop_seconds[d]) for d in group] if problem.hop_seconds else [],
        offload=offload
        and Offload(offload.layer_bytes, some(offload.extra_seconds), some(offload.host_bytes)),
    )


@pytest.mark.parametrize("equal", [True, False])
def test_the_best_split_of_the_best_group_equals_brute_force_with_idle_devices(
    equal: bool,
) -> None:
    """In 1200 instances with memory limits, masters, host memory and hops, half of them unequal."""
    rng = random.Random(37)
    feasible = idle = masters = 0
    for _ in range(600):
        problem = random_problem(rng, equal, 3, 4)
        pace = rng.choice((Pace(), Pace(laps=rng.randint(1, 4), weight=1.0, extra_seconds=0.3)))
        num_devices, num_layers = len(problem.memory_bytes), len(problem.layer_bytes)
        expected = min(
            value_of(problem, pace, stages) for stages in with_idle(num_devices, num_layers)
        )
        groups = [
            group
            for size in range(1, num_devices + 1)
            for group in combinations(range(num_devices), size)
        ]
        splits = [(best_split(of_group(problem, group), pace), group) for group in groups]
        found = min(((split.seconds, group) for split, group in splits if split), default=None)
        if found is None:
            assert expected == inf, problem
            continue
        assert found[0] == pytest.approx(expected, rel=1e-9), problem
        feasible += 1
        idle += len(found[1]) < num_devices
        masters += problem.ends is Ends.MASTER
    assert feasible > 300
    assert idle > 30
    assert masters > 100


def test_six_unequal_devices_on_a_matrix_of_hops_come_close_to_all_orders() -> None:
    # Beyond five devices the order is the shortest ring's, which splits need not like best.
    rng = random.Random(41)
    ratios = []
    for _ in range(8):
        hops = [[0.0 if a == b else rng.uniform(0, 2) for b in range(6)] for a in range(6)]
        problem = SplitProblem(
            layer_seconds=[[rng.uniform(0.2, 2) for _ in range(7)] for _ in range(6)],
            first_seconds=[0.1] * 6,
            last_seconds=[0.5] * 6,
            layer_bytes=[1] * 7,
            first_bytes=1,
            last_bytes=1,
            shared_bytes=0,
            memory_bytes=[3] * 6,
            hop_seconds=hops,
        )
        pace = Pace(laps=1, weight=1.0)
        expected, found = brute_force(problem, pace), best_split(problem, pace)
        assert expected is not None
        assert found is not None
        ratios.append(found.seconds / expected[0])
    assert min(ratios) >= 1 - 1e-9
    assert sum(ratios) / len(ratios) < 1.1


def test_the_fast_way_for_equal_blocks_agrees_with_the_general_program() -> None:
    rng = random.Random(31)
    for _ in range(150):
        problem = random_problem(rng, equal=True)
        general = min((end.slowest for end in pareto_splits(problem)), default=None)
        fast = best_split(problem, Pace())
        assert (fast is None) == (general is None), problem
        if fast is not None:
            assert fast.slowest == pytest.approx(general, rel=1e-9)


def two_devices(**changes: object) -> SplitProblem:
    """Return 6 layers of 10 bytes (8 of them movable) for a fast device and a slow one."""
    problem = SplitProblem(
        layer_seconds=[[1.0] * 6, [4.0] * 6],
        first_seconds=[0.0, 0.0],
        last_seconds=[0.0, 0.0],
        layer_bytes=[10] * 6,
        first_bytes=0,
        last_bytes=0,
        shared_bytes=0,
        memory_bytes=[20, 100],
        offload=Offload([8] * 6, [[0.5] * 6, [0.0] * 6], [100, 0]),
    )
    return replace(problem, **changes)  # type: ignore[arg-type]


def test_own_memory_is_filled_before_anything_moves_to_host_memory() -> None:
    split = best_split(two_devices(), Pace())
    assert split is not None
    counts, offloads = dict(zip(split.order, split.counts, strict=True)), split.offloads
    # Five layers take 50 of 20 bytes: four parts of 8 bytes must move, and no more.
    assert counts == {0: 5, 1: 1}
    assert offloads[split.order.index(0)] == 4
    assert split.slowest == pytest.approx(5 * 1.0 + 4 * 0.5)


def test_without_room_in_host_memory_the_layers_go_elsewhere() -> None:
    full = two_devices(offload=Offload([8] * 6, [[0.5] * 6, [0.0] * 6], [8, 0]))
    split = best_split(full, Pace())
    assert split is not None
    counts = dict(zip(split.order, split.counts, strict=True))
    assert counts == {0: 2, 1: 4}


def test_a_master_carries_both_ends_and_comes_first() -> None:
    problem = two_devices(
        ends=Ends.MASTER,
        first_seconds=[9.0, 0.5],
        last_seconds=[9.0, 0.5],
        memory_bytes=[100, 100],
    )
    split = best_split(problem, Pace())
    assert split is not None
    assert split.order[0] == 1
    assert split.slowest == pytest.approx(5.0)


@pytest.mark.parametrize("num_devices", [2, 3, 5])
def test_the_shortest_ring_equals_trying_every_order(num_devices: int) -> None:
    rng = random.Random(num_devices)
    for _ in range(20):
        hops = [[rng.random() for _ in range(num_devices)] for _ in range(num_devices)]
        first, last = rng.sample(range(num_devices), 2)
        rings = {
            order: ring_seconds(hops, order)
            for order in permutations(range(num_devices))
            if order[0] == first
        }
        to_last = min(s for order, s in rings.items() if order[-1] == last)
        assert shortest_ring(hops, first, last).seconds == pytest.approx(to_last)
        assert shortest_ring(hops, first, first).seconds == pytest.approx(min(rings.values()))


def test_a_matrix_of_hops_decides_the_order_of_equal_devices() -> None:
    near, far = 0.1, 5.0
    # Only 0 -> 2 -> 1 -> 3 -> 0 is near.
    ways = {(0, 2), (2, 1), (1, 3), (3, 0)}
    hops = [
        [0.0 if a == b else near if (a, b) in ways else far for b in range(4)] for a in range(4)
    ]
    problem = SplitProblem(
        [[1.0] * 8] * 4, [0.0] * 4, [0.0] * 4, [1] * 8, 0, 0, 0, [9] * 4, hop_seconds=hops
    )
    split = best_split(problem, Pace(laps=1, weight=1.0))
    assert split is not None
    assert ring_seconds(hops, split.order) == pytest.approx(4 * near)
    assert split.seconds == pytest.approx(8 * 1.0 + 4 * near)
