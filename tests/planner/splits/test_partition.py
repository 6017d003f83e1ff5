"""The splits against brute force."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations, pairwise, permutations

import pytest

from planner.splits.equal_blocks import has_equal_blocks
from planner.splits.partition import best_split, pareto_splits
from planner.splits.split import Pace, SplitProblem


def brute_force(problem: SplitProblem, pace: Pace) -> tuple[float, float] | None:
    """Return the least (value, total) over all orders and cuts."""
    values = []
    for order, counts in every_split(len(problem.memory_bytes), len(problem.layer_bytes)):
        stages, start, fits = [], 0, True
        for place, (device, count) in enumerate(zip(order, counts, strict=True)):
            first, last = place == 0, place == len(order) - 1
            end = start + count
            size = sum(problem.layer_bytes[start:end])
            size += problem.first_bytes * first + problem.last_bytes * last
            size -= problem.shared_bytes * (first and last)
            fits = fits and size <= problem.memory_bytes[device]
            seconds = sum(problem.layer_seconds[device][start:end])
            seconds += problem.first_seconds[device] * first
            seconds += problem.last_seconds[device] * last
            stages.append(seconds)
            start = end
        if fits:
            values.append((pace.seconds(max(stages), sum(stages)), sum(stages)))
    if not values:
        return None
    best = min(values)[0]
    # Values that differ by rounding alone are equal.
    return best, min(total for seconds, total in values if seconds <= best * (1 + 1e-9))


def every_split(
    num_devices: int, num_layers: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    for order in permutations(range(num_devices)):
        for cuts in combinations(range(1, num_layers), num_devices - 1):
            edges = [0, *cuts, num_layers]
            yield order, tuple(b - a for a, b in pairwise(edges))


def random_problem(rng: random.Random, equal: bool) -> SplitProblem:
    num_devices, num_layers = rng.randint(1, 4), rng.randint(1, 7)

    def seconds() -> float:
        # Few distinct values, so that ties are common.
        return rng.choice((0.5, 1.0, 1.0, 2.0, rng.uniform(0.1, 3)))

    size = rng.randint(1, 5)
    rows = [[seconds()] * num_layers for _ in range(num_devices)]
    if not equal:
        rows = [[seconds() for _ in range(num_layers)] for _ in range(num_devices)]
    shared = rng.choice((0, 1))
    return SplitProblem(
        layer_seconds=rows,
        first_seconds=[rng.choice((0.0, seconds())) for _ in range(num_devices)],
        last_seconds=[rng.choice((0.0, seconds())) for _ in range(num_devices)],
        layer_bytes=[size if equal else rng.randint(1, 5) for _ in range(num_layers)],
        first_bytes=rng.randint(shared, 4),
        last_bytes=rng.randint(shared, 4),
        shared_bytes=shared,
        memory_bytes=[rng.randint(3, 30) for _ in range(num_devices)],
    )


def random_pace(rng: random.Random) -> Pace:
    if rng.random() < 0.5:
        return Pace()
    return Pace(laps=rng.randint(1, 6), weight=1.0, extra_seconds=rng.choice((0.0, 1.5)))


@pytest.mark.parametrize("equal", [True, False])
def test_the_best_split_equals_brute_force(equal: bool) -> None:
    rng = random.Random(7)
    feasible = 0
    for _ in range(500):
        problem, pace = random_problem(rng, equal), random_pace(rng)
        expected, found = brute_force(problem, pace), best_split(problem, pace)
        if expected is None:
            assert found is None, problem
            continue
        feasible += 1
        assert found is not None, problem
        assert found.seconds == pytest.approx(expected[0], rel=1e-9), problem
        assert found.total == pytest.approx(expected[1], rel=1e-9), problem
        assert sorted(found.order) == list(range(len(problem.memory_bytes)))
        assert sum(found.counts) == len(problem.layer_bytes)
    assert feasible > 150


def test_the_fast_way_for_equal_blocks_agrees_with_the_general_program() -> None:
    rng = random.Random(11)
    for _ in range(300):
        problem, pace = random_problem(rng, True), random_pace(rng)
        assert has_equal_blocks(problem)
        general = min(
            (pace.seconds(end.slowest, end.total) for end in pareto_splits(problem)),
            default=None,
        )
        fast = best_split(problem, pace)
        assert (fast is None) == (
            general is None or len(problem.memory_bytes) > len(problem.layer_bytes)
        )
        if fast is not None:
            assert fast.seconds == pytest.approx(general, rel=1e-9)


def test_a_limit_excludes_slower_splits_and_nothing_else() -> None:
    rng = random.Random(3)
    for _ in range(200):
        problem, pace = random_problem(rng, rng.random() < 0.5), random_pace(rng)
        best = best_split(problem, pace)
        if best is None:
            continue
        assert best_split(problem, pace, best.seconds) is not None
        assert best_split(problem, pace, best.seconds * 0.999) is None


def test_more_devices_than_layers_have_no_split() -> None:
    problem = SplitProblem([[1.0], [1.0]], [0, 0], [0, 0], [1], 0, 0, 0, [9, 9])
    assert best_split(problem, Pace()) is None


def test_the_same_problem_always_gives_the_same_split() -> None:
    problem = SplitProblem([[1.0] * 4] * 3, [0.0] * 3, [0.0] * 3, [1] * 4, 0, 0, 0, [9, 9, 9])
    assert {best_split(problem, Pace()) for _ in range(5)} == {best_split(problem, Pace())}


def test_nine_devices_with_unequal_blocks_still_get_a_split() -> None:
    rng = random.Random(5)
    rows = [[rng.uniform(1, 2) for _ in range(12)] for _ in range(9)]
    problem = SplitProblem(rows, [0.1] * 9, [0.5] * 9, [1] * 12, 1, 1, 0, [4] * 9)
    found = best_split(problem, Pace())
    assert found is not None
    assert sum(found.counts) == 12
    assert max(found.counts) <= 4
