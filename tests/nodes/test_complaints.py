"""Rubbish is counted, and logged within bounds."""

import logging

import pytest

from nodes.complaints import Complaints

LOGGER = logging.getLogger("tests.complaints")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_the_same_complaint_is_logged_once_a_minute_and_counted_always(
    caplog: pytest.LogCaptureFixture,
) -> None:
    complaints = Complaints(LOGGER)
    for now in (100.0, 101.0, 159.0, 161.0):
        complaints.drop("work", "a/work", f"frame of {int(now)} bytes is too short", now)
    assert complaints.num_dropped == 4
    assert lines(caplog) == [
        "dropped a message on a/work: frame of 100 bytes is too short",
        "dropped a message on a/work: frame of 161 bytes is too short",
    ]


def test_another_kind_or_reason_is_logged_on_its_own(caplog: pytest.LogCaptureFixture) -> None:
    complaints = Complaints(LOGGER)
    complaints.drop("work", "a/work", "too short", 100.0)
    complaints.drop("work", "a/work", "not a frame", 100.0)
    complaints.drop("kv", "a/kv", "too short", 100.0)
    assert len(lines(caplog)) == 3


def test_a_stranger_who_is_wrong_in_new_ways_each_time_cannot_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    complaints = Complaints(LOGGER)
    for letter in range(1000):
        complaints.drop("work", "a/work", "reason " + "x" * letter, 100.0)
    assert len(lines(caplog)) == 20
    assert complaints.num_dropped == 1000


def test_a_topic_cannot_forge_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    Complaints(LOGGER).drop("work", "a\nERROR forged", "r" * 1000, 100.0)
    (line,) = lines(caplog)
    assert "\n" not in line
    assert len(line) < 400
