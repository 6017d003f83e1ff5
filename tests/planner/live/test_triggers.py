"""What starts planning, and what a move must gain."""

from __future__ import annotations

import pytest

from broker.plan import Plan
from planner.live.triggers import count_looks, decide, relative_speeds, speed_text
from planner.model import Workload
from planner.planning import Outcome, plan_outcome
from planner.roles import Score
from tests.planner import fogs

WORKLOAD = Workload(prompt_tokens=64, answer_tokens=64, context_tokens=512)


def outcome(seconds: float, replicas: str = "ab", is_mixed: int = 0, num_slow: int = 0) -> Outcome:
    """An outcome with one replica per letter, which is the replica's id."""
    devices, model = fogs.random_fog(1, 4)
    (any_replica, *_) = plan_outcome(devices, model, WORKLOAD).plan.replicas
    import msgspec.structs

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
        (outcome(1.0, "a"), outcome(0.99, "cd"), False, "broken"),
        (None, outcome(5.0, "cd"), False, "broken"),
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


def test_the_first_plan_needs_no_reason() -> None:
    assert not decide(None, None, outcome(9.0), 0.10).is_kept


def test_only_looks_in_a_row_count() -> None:
    counts: dict[str, int] = {}
    for ratio in (0.5, 0.5, 0.9, 0.5):
        counts = count_looks(counts, {"a": ratio, "b": 1.2}, 0.25)
    assert counts == {"a": 1}


@pytest.mark.parametrize(
    ("ratio", "is_off"), [(0.74, True), (0.76, False), (1.24, False), (1.26, True), (4.0, True)]
)
def test_speed_is_off_beyond_the_threshold_in_both_directions(ratio: float, is_off: bool) -> None:
    assert bool(count_looks({}, {"a": ratio}, 0.25)) is is_off


def test_speed_is_read_from_the_plan_itself() -> None:
    devices, model = fogs.random_fog(2, 4)
    plan = plan_outcome(devices, model, WORKLOAD).plan
    specs = {device.id: device for device in devices}
    same = relative_speeds(plan, specs, model, WORKLOAD, {})
    assert same == pytest.approx(dict.fromkeys(specs, 1.0))
    slow = fogs.device("d1", 0.1, 1)
    specs["d1"] = type(slow)(
        id="d1",
        memory_bytes=devices[1].memory_bytes,
        blocks=devices[1].blocks,
        embedding=devices[1].embedding,
        head=devices[1].head,
        link=devices[1].link,
        speed=0.25,
    )
    assert relative_speeds(plan, specs, model, WORKLOAD, {})["d1"] == pytest.approx(0.25)


def test_a_change_is_put_in_words() -> None:
    assert speed_text("pi", 0.25) == "pi is 4 times slower than planned"
    assert speed_text("pi", 1.5) == "pi is 1.5 times faster than planned"
