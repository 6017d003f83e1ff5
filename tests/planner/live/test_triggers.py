"""What starts planning, and what a move must gain."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec.structs
import pytest

from broker.plan import Plan
from planner.live.triggers import changes, decide, drift_text, speed_text
from planner.model import Workload
from planner.planning import Outcome, plan_outcome
from planner.roles import Score
from tests.planner import fogs

WORKLOAD = Workload(prompt_tokens=64, answer_tokens=64, context_tokens=512)


def outcome(seconds: float, replicas: str = "ab", is_mixed: int = 0, num_slow: int = 0) -> Outcome:
    """An outcome with one replica per letter, which is the replica's id."""
    devices, model = fogs.random_fog(1, 4)
    (any_replica, *_) = plan_outcome(devices, model, WORKLOAD).plan.replicas
    chosen = [msgspec.structs.replace(any_replica, id=letter) for letter in replicas]
    plan = msgspec.structs.replace(plan_outcome(devices, model, WORKLOAD).plan, replicas=chosen)
    return Outcome(plan, Score(0, is_mixed, num_slow, seconds, seconds, 1.0, 4))


RUNNING: Plan = outcome(1.0).plan


@pytest.mark.parametrize(
    ("kept", "best", "is_kept", "reason"),
    [
        (outcome(1.0), outcome(0.95, "cd"), True, "another plan would gain 5.3%"),
        (outcome(1.0), outcome(0.8, "cd"), False, "25% more requests"),
        (outcome(1.0), outcome(1.0, "ba"), True, "the same replicas"),
        (outcome(1.0, "a"), outcome(0.99, "cd"), False, "does not fit its devices any more"),
        (None, outcome(5.0, "cd"), False, "does not fit its devices any more"),
        (outcome(1.0, is_mixed=1), outcome(1.2, "cd"), False, "roles can be separate"),
        (outcome(1.0, num_slow=1), outcome(1.2, "cd"), False, "streams become fast enough"),
        (outcome(1.0), outcome(1.0, "cd"), True, "would gain 0.0%"),
    ],
)
def test_a_plan_is_adopted_when_it_repays_the_move(
    kept: Outcome | None, best: Outcome, is_kept: bool, reason: str
) -> None:
    decision = decide(RUNNING, kept, best, 0.10)
    assert decision.is_kept is is_kept
    assert decision.outcome.plan.replicas == (kept if is_kept and kept else best).plan.replicas
    assert reason in decision.reason


def test_a_plan_that_lost_devices_says_which_and_why() -> None:
    lost = {"a": "its owner drains it", "b": "it is gone"}
    reason = decide(RUNNING, None, outcome(5.0, "cd"), 0.10, lost).reason
    expected = "the running plan cannot go on without a (its owner drains it), b (it is gone)"
    assert reason == expected


def test_the_first_plan_needs_no_reason() -> None:
    assert not decide(None, None, outcome(9.0), 0.10).is_kept


def changed(**change: Any) -> list[str]:
    before = fogs.device("d1", 0.01, 1_000_000)
    return changes({"d1": before}, {"d1": replace(before, **change)}, 0.25)


@pytest.mark.parametrize(
    ("speed", "is_off"), [(0.79, True), (0.81, False), (1.24, False), (1.26, True), (4.0, True)]
)
def test_speed_is_off_beyond_the_threshold_in_both_directions(speed: float, is_off: bool) -> None:
    assert bool(changed(speed=speed)) is is_off


def test_a_device_that_measured_itself_anew_is_compared_by_its_times() -> None:
    twice = {"full": fogs.layer_times(0.02)}
    assert changed(blocks=twice) == ["d1 is 2 times slower than planned"]
    assert changed(blocks=twice, speed=2.0) == []


def test_a_link_that_changed_by_far_is_named() -> None:
    old = fogs.device("d1", 0.01, 1).link
    slow = msgspec.structs.replace(old, bytes_per_second=old.bytes_per_second / 10)
    assert changed(link=slow) == ["the link of d1 has changed: rate 10.0 MB/s"]
    far = msgspec.structs.replace(old, latency_seconds=0.02)
    assert changed(link=far) == ["the link of d1 has changed: delay 20 ms"]
    near = msgspec.structs.replace(old, latency_seconds=old.latency_seconds * 1.4)
    assert changed(link=near) == []


def test_memory_that_came_back_is_named_and_less_memory_is_not() -> None:
    assert changed(memory_bytes=2_000_000) == ["d1 has 2.0 MB for the model again"]
    assert changed(memory_bytes=500_000) == []


def test_devices_that_joined_or_left_are_no_change_of_a_device() -> None:
    one, other = fogs.device("d1", 0.01, 1), fogs.device("d2", 0.01, 1)
    assert changes({"d1": one}, {"d2": other}, 0.25) == []


@pytest.mark.parametrize(
    ("prompt", "answer", "is_drift"),
    [(64, 64, False), (90, 64, False), (32, 32, False), (200, 64, True), (64, 200, True)],
)
def test_requests_of_another_shape_are_a_drift(prompt: int, answer: int, is_drift: bool) -> None:
    plan = msgspec.structs.replace(RUNNING, prompt_tokens=64, answer_tokens=64)
    found = Workload(prompt_tokens=prompt, answer_tokens=answer)
    assert (drift_text(plan, found, 0.5) is not None) is is_drift


def test_a_plan_that_does_not_say_its_lengths_has_no_drift() -> None:
    plan = msgspec.structs.replace(RUNNING, prompt_tokens=0, answer_tokens=0)
    assert drift_text(plan, Workload(prompt_tokens=1, answer_tokens=999), 0.5) is None


def test_a_change_is_put_in_words() -> None:
    assert speed_text("pi", 0.25) == "pi is 4 times slower than planned"
    assert speed_text("pi", 1.5) == "pi is 1.5 times faster than planned"
