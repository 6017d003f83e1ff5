"""A device's profile when gateways publish several models."""

from __future__ import annotations

import pytest

from broker.control import Link
from nodes.profiler import Profiler
from nodes.settings import MemoryOffer
from tests.planner import fogs
from tests.support.node_rig import InstantCalibrator

LINK = Link(latency_seconds=0.001, bytes_per_second=1e6)
FIRST = fogs.manifest("rev-1", "first")
SECOND = fogs.manifest("rev-2", "second", weights="bfloat16")


@pytest.fixture
def calibrator() -> InstantCalibrator:
    return InstantCalibrator()


def profiler(calibrator: InstantCalibrator) -> Profiler:
    made = Profiler(calibrator, MemoryOffer(share=0.5))
    made.take_link(LINK)
    assert made.take_manifest(FIRST, "first")
    assert made.poll()
    return made


def revisions(made: Profiler) -> list[str]:
    profile = made.profile(1)
    assert profile is not None
    return [each.model_revision for each in (profile, *profile.others)]


def test_the_newest_model_comes_first_and_the_others_stay(calibrator: InstantCalibrator) -> None:
    made = profiler(calibrator)
    assert made.take_manifest(SECOND, "second")
    assert revisions(made) == ["rev-1"]
    assert made.poll()
    assert revisions(made) == ["rev-2", "rev-1"]
    profile = made.profile(1)
    assert profile is not None
    found = [profile.times_for("rev-1", "float32"), profile.times_for("rev-2", "bfloat16")]
    assert None not in found
    assert profile.times_for("rev-1", "int8") is None
    # A share is of each model: of smaller weights it takes less.
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].memory_bytes > found[1].memory_bytes


def test_fresh_urls_start_nothing_and_move_nothing(calibrator: InstantCalibrator) -> None:
    made = profiler(calibrator)
    made.take_manifest(SECOND, "second")
    made.poll()
    assert not made.take_manifest(FIRST, "first")
    assert not made.poll()
    assert calibrator.started == ["rev-1", "rev-2"]
    assert revisions(made) == ["rev-2", "rev-1"]


def test_a_model_that_is_taken_back_leaves_the_profile_and_may_come_again(
    calibrator: InstantCalibrator,
) -> None:
    made = profiler(calibrator)
    made.take_manifest(SECOND, "second")
    made.poll()
    assert made.forget("second")
    assert revisions(made) == ["rev-1"]
    assert not made.forget("second")
    assert made.take_manifest(SECOND, "second")
    assert made.poll()
    assert revisions(made) == ["rev-2", "rev-1"]


def test_what_was_measured_for_a_model_that_is_gone_is_dropped(
    calibrator: InstantCalibrator,
) -> None:
    made = profiler(calibrator)
    made.take_manifest(SECOND, "second")
    made.forget("second")
    assert not made.poll()
    assert revisions(made) == ["rev-1"]


def test_a_model_that_cannot_be_served_leaves_the_other_one(calibrator: InstantCalibrator) -> None:
    made = profiler(calibrator)
    calibrator.error = "no such kernel"
    made.take_manifest(SECOND, "second")
    assert made.poll()
    assert made.error == "no such kernel"
    assert revisions(made) == ["rev-1"]
