"""Levels stay through noise and follow what lasts."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable

import pytest

from planner.live.levels import Level, Rule

RULE = Rule(threshold=0.25, seconds=4.0)
LOOK_SECONDS = 2.0


def followed(readings: Iterable[float], value: float = 1.0) -> list[float]:
    """The level after each reading, one every two seconds."""
    level, values = Level(value), []
    for index, reading in enumerate(readings):
        level = level.after(reading, 100.0 + LOOK_SECONDS * index, RULE)
        values.append(level.value)
    return values


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("value", [1.0, 0.25])
def test_noise_of_15_percent_never_moves_a_level(seed: int, value: float) -> None:
    rng = random.Random(seed)
    readings = [value * rng.uniform(0.85, 1.15) for _ in range(5000)]
    assert set(followed(readings, value)) == {value}


@pytest.mark.parametrize("seed", range(20))
def test_a_level_found_in_noise_stays_too(seed: int) -> None:
    rng = random.Random(seed)
    readings = [0.25 * rng.uniform(0.85, 1.15) for _ in range(5000)]
    values = followed(readings)
    assert len(set(values)) == 2
    assert values[-1] == pytest.approx(0.25, rel=0.16)


@pytest.mark.parametrize("factor", [0.25, 4.0, 0.01, 30.0])
def test_what_is_off_by_far_counts_within_six_seconds(factor: float) -> None:
    values = followed([1.0, factor, factor, factor])
    assert values == [1.0, 1.0, factor, factor]


@pytest.mark.parametrize("factor", [0.25, 0.001, 5.0, 1e4])
def test_one_reading_is_a_hiccup_however_far_off(factor: float) -> None:
    assert set(followed([1.0, factor, 1.0] * 200)) == {1.0}


@pytest.mark.parametrize(("factor", "seconds"), [(2.0, 10), (1.5, 24), (1.3, 104)])
def test_what_is_off_by_less_must_last_longer(factor: float, seconds: float) -> None:
    values = followed([1.0] + [factor] * 100)
    found = values.index(factor) * LOOK_SECONDS
    assert found == pytest.approx(seconds, abs=LOOK_SECONDS)


def test_what_is_off_by_less_than_the_threshold_never_counts() -> None:
    assert set(followed([1.24] * 5000)) == {1.0}
    assert set(followed([0.81] * 5000)) == {1.0}


def test_a_slow_drift_is_followed() -> None:
    values = followed([1.0 - index / 2000 for index in range(1000)])
    assert values[-1] < 0.7


WAVES: list[Callable[[int], float]] = [
    lambda index: 0.25 if index // 8 % 2 else 1.0,
    lambda index: 0.25 if index // 30 % 2 else 1.0,
    lambda index: 4.0 if index // 5 % 3 == 0 else 0.25,
    lambda index: random.Random(index // 10).choice((0.1, 1.0, 5.0)),
]


@pytest.mark.parametrize("wave", WAVES)
def test_a_quantity_that_goes_to_and_fro_is_not_followed_for_ever(
    wave: Callable[[int], float],
) -> None:
    values = followed([wave(index) for index in range(900)])
    changes = sum(a != b for a, b in itertools.pairwise(values))
    # Half an hour; followed blindly it would be between 30 and 110.
    assert 1 <= changes <= 27


def test_patience_ends_when_a_quantity_has_been_calm() -> None:
    level = Level(1.0, changes=(0.0, 10.0, 20.0, 30.0, 40.0, 50.0))
    for now in (700.0, 702.0, 704.0):
        level = level.after(0.25, now, RULE)
    assert level.value == 0.25


def test_readings_far_apart_do_not_vouch_for_the_time_between() -> None:
    level = Level(1.0).after(1.0, 0.0, RULE).after(0.5, 3600.0, RULE)
    assert level.value == 1.0
