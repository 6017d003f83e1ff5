"""How silence of a device is told from its usual pace."""

from broker.liveness import Liveness


def reporting(every: float, until: float) -> Liveness:
    known = Liveness()
    now = 0.0
    while now <= until:
        known.reported("pi", now)
        now += every
    return known


def test_a_device_that_misses_a_report_is_silent() -> None:
    known = reporting(every=2.0, until=20.0)

    assert known.silent_seconds("pi", 23.0) is None
    assert known.silent_seconds("pi", 23.6) == 23.6 - 20.0


def test_what_it_says_of_requests_counts_too() -> None:
    known = reporting(every=2.0, until=20.0)
    known.heard("pi", 23.0)

    assert known.silent_seconds("pi", 26.0) is None
    assert known.silent_seconds("pi", 26.6) is not None


def test_a_device_that_reports_seldom_has_its_own_pace() -> None:
    known = reporting(every=30.0, until=300.0)

    assert known.silent_seconds("pi", 345.0) is None
    assert known.silent_seconds("pi", 353.0) == 53.0


def test_a_pause_does_not_become_the_usual_pace() -> None:
    known = reporting(every=2.0, until=20.0)
    known.reported("pi", 60.0)

    assert known.silent_seconds("pi", 63.6) is not None


def test_of_a_device_without_a_pace_nothing_is_said() -> None:
    known = Liveness()
    assert known.silent_seconds("pi", 100.0) is None
    known.heard("pi", 0.0)
    assert known.silent_seconds("pi", 100.0) is None
    known.reported("pi", 1.0)
    assert known.silent_seconds("pi", 100.0) is None
