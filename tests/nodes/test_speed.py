"""A slow device that gets no work any more still finds out when it is fast again."""

import pytest

from nodes.canary import canary_seconds
from nodes.speed import SpeedGauge


def slow_gauge(ratio: float = 0.25) -> SpeedGauge:
    gauge = SpeedGauge()
    gauge.computed(ratio, 100.0)
    return gauge


def test_a_device_that_never_computed_is_as_fast_as_measured_and_asks_nothing() -> None:
    gauge = SpeedGauge()
    assert gauge.ratio == 1.0
    assert not gauge.wants_canary(1e6)


def test_a_device_that_is_as_fast_as_measured_asks_nothing_when_idle() -> None:
    gauge = slow_gauge(0.95)
    gauge.computed(None, 200.0)
    assert not gauge.wants_canary(200.0)
    assert gauge.ratio == 0.95


def test_an_idle_slow_device_is_slow_until_it_has_recovered() -> None:
    gauge = slow_gauge()
    assert not gauge.wants_canary(100.5)
    assert gauge.wants_canary(101.0)
    gauge.take_canary(0.004, 101.0)
    assert not gauge.wants_canary(105.9)
    assert gauge.wants_canary(106.0)
    gauge.take_canary(0.004, 106.0)
    assert gauge.ratio == pytest.approx(0.25)
    gauge.take_canary(0.001, 111.0)
    assert gauge.ratio == pytest.approx(1.0)


def test_a_little_computing_never_says_that_a_device_is_faster_than_measured() -> None:
    gauge = slow_gauge(0.5)
    gauge.take_canary(0.01, 101.0)
    gauge.take_canary(0.001, 106.0)
    assert gauge.ratio == 1.0


def test_work_goes_before_what_a_little_computing_says() -> None:
    gauge = slow_gauge()
    gauge.take_canary(0.004, 101.0)
    gauge.take_canary(0.001, 106.0)
    gauge.computed(0.25, 107.0)
    assert gauge.ratio == 0.25
    # Compared with what it takes now, not with before.
    gauge.take_canary(0.001, 108.0)
    assert gauge.ratio == 0.25


def test_the_little_computing_takes_some_time_of_a_core() -> None:
    assert 0 < canary_seconds() < 0.05
