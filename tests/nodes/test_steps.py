"""What telemetry says of recent decode steps."""

import pytest

from nodes.emulation import Pacer
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


def paced_log(slowdown: float, busy_seconds: list[float]) -> tuple[StepLog, Pacer]:
    """Steps of 10 ms on a device, each of which computed for so long."""
    now = [100.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    log, pacer = StepLog(), Pacer(slowdown, sleep, lambda: now[0])
    for seconds in busy_seconds:
        late_before = pacer.late_steps
        pacer.begin()
        now[0] += seconds
        took = pacer.finish(0.01)
        is_late = pacer.late_steps > late_before
        log.add(now[0], "r", 1, took, 0.01 * slowdown, is_late=is_late)
    return log, pacer


def test_an_emulated_device_on_a_busy_host_keeps_its_speed_and_counts_late_steps() -> None:
    # Ten steps wait for a core twice as long as they may take in all, ten are in time.
    log, pacer = paced_log(4, [0.08, 0.01] * 10)
    assert log.speed_ratio() == pytest.approx(1.0)
    assert pacer.late_steps == 10
    # What the steps took is still told.
    assert log.stage_seconds() == pytest.approx({"r": 0.06})


def test_an_emulated_device_that_is_never_in_time_tells_nothing_of_its_speed() -> None:
    log, pacer = paced_log(4, [0.08] * 20)
    assert log.speed_ratio() == 1.0
    assert pacer.late_steps == 20


def test_a_real_device_that_is_slower_than_measured_says_so() -> None:
    log, pacer = paced_log(1, [0.02] * 20)
    assert log.speed_ratio() == pytest.approx(0.5)
    assert pacer.late_steps == 0


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
