"""What telemetry says of recent decode steps."""

import pytest

from nodes.steps import StepLog


def log_of(*steps: tuple[float, str, float, float | None]) -> StepLog:
    log = StepLog()
    for at, replica, seconds, predicted in steps:
        log.add(at, replica, 2, seconds, predicted)
    return log


def test_a_device_that_takes_twice_as_long_has_half_its_speed() -> None:
    log = log_of(*((float(n), "r", 0.02, 0.01) for n in range(5)))
    assert log.speed_ratio() == pytest.approx(0.5)


@pytest.mark.parametrize("count", [0, 4])
def test_too_few_steps_tell_nothing(count: int) -> None:
    log = log_of(*((float(n), "r", 0.02, 0.01) for n in range(count)))
    assert log.speed_ratio() == 1.0


def test_steps_of_a_model_that_was_not_measured_do_not_count() -> None:
    log = log_of(*((float(n), "r", 0.02, None) for n in range(9)))
    assert log.speed_ratio() == 1.0


def test_a_slow_moment_is_forgotten() -> None:
    log = log_of(*((0.0, "r", 1.0, 0.01) for _ in range(9)))
    log.forget_old(10.1)
    assert log.speed_ratio() == 1.0
    assert log.stage_seconds() == {}
    assert log.tokens_per_second() == 0.0


def test_each_replica_has_its_own_mean_and_all_tokens_count() -> None:
    log = log_of((1.0, "a", 0.1, None), (2.0, "a", 0.3, None), (3.0, "b", 0.5, None))
    assert log.stage_seconds() == pytest.approx({"a": 0.2, "b": 0.5})
    assert log.tokens_per_second() == pytest.approx(0.6)
