"""What telemetry says of recent computations."""

from typing import Any

import pytest

from nodes.emulation import Pacer
from nodes.steps import Run, RunLog


def run(at: float = 0.0, seconds: float = 0.01, **changes: Any) -> Run:
    values: dict[str, Any] = {
        "replica": "r",
        "is_decode": True,
        "rows": 2,
        "active_seconds": seconds,
        "predicted_seconds": 0.01,
    }
    return Run(at=at, seconds=seconds, **{**values, **changes})


def log_of(*runs: Run) -> RunLog:
    log = RunLog()
    for each in runs:
        log.add(each)
    return log


@pytest.mark.parametrize("is_decode", [True, False])
def test_a_device_that_takes_twice_as_long_has_half_its_speed(is_decode: bool) -> None:
    log = log_of(*(run(n, 0.02, is_decode=is_decode) for n in range(5)))
    assert log.speed_ratio() == pytest.approx(0.5)


@pytest.mark.parametrize("count", [0, 4])
def test_too_few_computations_tell_nothing(count: int) -> None:
    assert log_of(*(run(n, 0.02) for n in range(count))).speed_ratio() is None


def test_one_odd_computation_does_not_count() -> None:
    log = log_of(run(0, 0.04), *(run(n, 0.01) for n in range(9)))
    assert log.speed_ratio() == pytest.approx(1.0)


def test_a_device_that_became_slow_is_seen_after_half_of_the_time_of_computing() -> None:
    # 40 fast steps took as long as 10 slow ones; one slow step more decides.
    log = log_of(*(run(n, 0.01) for n in range(40)), *(run(n, 0.04) for n in range(11)))
    assert log.speed_ratio() == pytest.approx(0.25)


def test_waiting_for_a_core_is_told_apart_from_speed() -> None:
    log = log_of(*(run(n, 0.04, active_seconds=0.01) for n in range(8)))
    assert log.speed_ratio() == pytest.approx(1.0)
    assert log.core_wait_ratio() == pytest.approx(0.75)
    # What the steps took is still told.
    assert log.stage_seconds() == pytest.approx({"r": 0.04})
    assert RunLog().core_wait_ratio() == 0.0


def paced_log(slowdown: float, busy: list[float], core: float = 1.0) -> tuple[RunLog, Pacer]:
    """Steps of 10 ms on a device, each of which computed for so long, partly on a core."""
    now = [100.0]
    used = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    log, pacer = RunLog(), Pacer(slowdown, sleep, lambda: now[0], lambda: used[0])
    for seconds in busy:
        pacer.begin()
        now[0] += seconds
        used[0] += core * seconds
        took = pacer.finish(0.01)
        log.add(
            run(
                now[0],
                took.seconds,
                active_seconds=took.active_seconds,
                predicted_seconds=0.01 * slowdown,
            )
        )
    return log, pacer


@pytest.mark.parametrize("busy", [[0.08, 0.01] * 10, [0.08] * 20])
def test_an_emulated_device_on_a_busy_host_keeps_its_speed_and_counts_late_steps(
    busy: list[float],
) -> None:
    log, pacer = paced_log(4, busy)
    assert log.speed_ratio() == pytest.approx(1.0)
    assert pacer.late_steps == busy.count(0.08)


def test_an_emulated_device_that_is_woken_late_keeps_its_speed() -> None:
    now = [100.0]

    def oversleep(seconds: float) -> None:
        now[0] += seconds + 0.03

    pacer = Pacer(4, oversleep, lambda: now[0], lambda: 0.0)
    pacer.begin()
    took = pacer.finish(0.01)
    assert took.seconds == pytest.approx(0.07)
    assert took.active_seconds == pytest.approx(0.04)


def test_a_real_device_that_is_slower_than_measured_says_so() -> None:
    log, pacer = paced_log(1, [0.02] * 20)
    assert log.speed_ratio() == pytest.approx(0.5)
    assert pacer.late_steps == 0


def test_a_real_device_that_waits_for_a_core_keeps_its_speed() -> None:
    log, _ = paced_log(1, [0.04] * 20, core=0.25)
    assert log.speed_ratio() == pytest.approx(1.0)
    assert log.core_wait_ratio() == pytest.approx(0.75)


def test_a_device_whose_threads_share_the_work_is_judged_by_its_usual_share_of_a_core() -> None:
    pacer = Pacer(
        1, lambda _: None, iter((0.0, 0.0, 0.1)).__next__, iter((0.0, 0.0, 0.05, 0)).__next__
    )
    pacer.begin()
    assert pacer.finish(None, core_share=0.5).active_seconds == pytest.approx(0.1)


def test_steps_of_a_model_that_was_not_measured_do_not_count() -> None:
    assert log_of(*(run(n, 0.02, predicted_seconds=None) for n in range(9))).speed_ratio() is None


def test_a_slow_moment_is_forgotten() -> None:
    log = log_of(*(run(0.0, 0.1) for _ in range(9)))
    log.forget_old(5.6)
    assert log.speed_ratio() is None
    assert log.stage_seconds() == {}
    assert log.tokens_per_second() == 0.0


def test_long_computations_are_remembered_until_there_are_enough() -> None:
    log = log_of(*(run(3.0 * n, 3.0, predicted_seconds=3.0) for n in range(5)))
    log.forget_old(13.0)
    assert log.speed_ratio() == pytest.approx(1.0)


def test_each_replica_has_its_own_times_and_all_tokens_count() -> None:
    log = log_of(
        run(1.0, 0.1, replica="a", rows=1),
        run(2.0, 0.3, replica="a", rows=3),
        run(3.0, 0.9, replica="a", rows=2),
        run(3.0, 0.5, replica="b"),
        run(3.0, 0.2, replica="b", is_decode=False, rows=64),
        run(3.0, 0.1, replica="b", is_decode=False, rows=32),
    )
    assert log.stage_seconds() == pytest.approx({"a": 0.3, "b": 0.5})
    assert log.stage_rows() == pytest.approx({"a": 2.0, "b": 2.0})
    assert log.prefill_token_seconds() == pytest.approx({"b": 0.3 / 96})
    assert log.tokens_per_second() == pytest.approx(8 / 5)
