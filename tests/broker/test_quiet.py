"""Quiet hours, as a person writes them."""

import pytest

from broker.quiet import is_quiet, parse_quiet_hours

NIGHT = "22:00-07:30, 12:00-13:00"


def at(hours: int, minutes: int = 0) -> float:
    return 1_700_006_400.0 + 3600 * hours + 60 * minutes  # a midnight in UTC


@pytest.mark.parametrize(
    ("hours", "minutes", "quiet"),
    [
        (21, 59, False),
        (22, 0, True),
        (0, 0, True),
        (7, 29, True),
        (7, 30, False),
        (12, 0, True),
        (13, 0, False),
    ],
)
def test_a_device_is_left_alone_within_its_hours_and_over_midnight(
    hours: int, minutes: int, quiet: bool
) -> None:
    assert is_quiet(NIGHT, at(hours, minutes), 0) is quiet
    assert is_quiet(NIGHT, at(hours - 2, minutes), 7200) is quiet


def test_without_hours_a_device_is_never_left_alone() -> None:
    assert not is_quiet(None, at(3), 0)


@pytest.mark.parametrize(
    "text", ["", "22-7", "25:00-07:00", "22:60-07:00", "8:00-8:00", "x", "1:00-2:00,"]
)
def test_what_is_no_span_of_a_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="quiet hours"):
        parse_quiet_hours(text)
