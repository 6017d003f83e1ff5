"""When a request waited, was prefilled, moved its KV and was decoded."""

from __future__ import annotations

import pytest

from broker.plan import Role
from gateway.attempt import Request
from gateway.course import MOST_ENDED, MOST_TURNS, Stretch, Turn, stretches
from gateway.lifecycle import Event, Phase
from tests.gateway.scripted_fog import STEP_SECONDS, Run, ScriptedFog, generation, replica

PHASES = ["queue", "prefill", "kv_transfer", "decode"]


def split_fog(slots: int = 4) -> ScriptedFog:
    return ScriptedFog(
        replica("p", ["p0", "p1"], Role.PREFILL),
        replica("d", ["d0", "d1", "d2"], Role.DECODE, slots=slots),
    )


def course(run: Run, name: str) -> tuple[Stretch, ...]:
    return run.dispatcher.courses(run.now)[name]


def names(found: tuple[Stretch, ...]) -> list[str]:
    return [stretch.phase for stretch in found]


def test_the_stretches_of_a_request_follow_each_other_from_its_arrival_to_its_end() -> None:
    turns = [
        Turn(Phase.QUEUED, 10.0),
        Turn(Phase.RESERVING, 10.5),
        Turn(Phase.PREFILL, 11.0),
        Turn(Phase.HANDOVER, 13.0),
        Turn(Phase.DECODE, 13.25),
        Turn(Phase.FINISHED, 20.0),
    ]

    found = stretches(turns, 10.0, 99.0)

    assert found == (
        Stretch("queue", 0.0, 1.0),
        Stretch("prefill", 1.0, 2.0),
        Stretch("kv_transfer", 3.0, 0.25),
        Stretch("decode", 3.25, 6.75),
    )


def test_an_open_stretch_goes_up_to_now() -> None:
    found = stretches([Turn(Phase.QUEUED, 10.0)], 10.0, 12.0)

    assert found == (Stretch("queue", 0.0, 2.0),)


def test_a_live_request_and_one_that_ended_both_have_a_course() -> None:
    run = Run(split_fog())
    run.submit(generation("a"))
    run.advance_until(lambda: run.dispatcher.phase("a") is Phase.DECODE)
    live = course(run, "a")
    run.advance_until(lambda: "a" in run.finished)
    ended = course(run, "a")
    run.advance(5)

    assert names(live)[-1] == names(ended)[-1] == "decode"
    assert names(ended) == [name for name in PHASES if name in names(ended)]
    # It goes on no longer when it has ended.
    assert course(run, "a") == ended


def test_kv_has_moved_one_step_before_the_second_token() -> None:
    run = Run(split_fog())
    run.submit(generation("a"))
    run.advance_until(lambda: run.dispatcher.phase("a") is Phase.HANDOVER)
    first_at = run.now
    run.now += 4 * STEP_SECONDS  # The fog is busy with its KV.
    run.advance_until(lambda: run.dispatcher.phase("a") is Phase.DECODE)

    [transfer] = [each for each in course(run, "a") if each.phase == "kv_transfer"]
    assert transfer.begins == pytest.approx(first_at)
    assert transfer.seconds == pytest.approx(4 * STEP_SECONDS)


def test_kv_has_moved_when_the_decode_master_says_that_only_a_row_is_lacking() -> None:
    run = Run(split_fog(slots=1))
    run.submit(generation("a", tokens=400))
    run.submit(generation("b", tokens=400))
    run.advance_until(lambda: run.dispatcher.phase("b") is Phase.HANDOVER)
    first_at = run.now
    run.advance_until(lambda: run.dispatcher.phase("b") is Phase.DECODE, 60.0)
    said_at = run.now

    [transfer] = [each for each in course(run, "b") if each.phase == "kv_transfer"]
    assert len(run.tokens["b"]) == 1
    assert transfer.begins == pytest.approx(first_at)
    assert transfer.seconds == pytest.approx(said_at - first_at)


def test_where_one_replica_does_both_no_kv_moves() -> None:
    run = Run(ScriptedFog(replica("b", ["b0", "b1"])))
    run.submit(generation("a"))
    run.advance_until(lambda: "a" in run.finished)

    assert "kv_transfer" not in names(course(run, "a"))
    assert names(course(run, "a"))[-2:] == ["prefill", "decode"]


def test_a_request_that_loses_its_device_queues_again_in_its_course() -> None:
    run = Run(split_fog())
    run.submit(generation("a", tokens=40))
    run.advance_until(lambda: run.dispatcher.phase("a") is Phase.DECODE)
    run.fog.silent |= {"d1"}
    run.advance_until(lambda: run.dispatcher.phase("a") is not Phase.DECODE)
    run.fog.silent.clear()
    run.advance_until(lambda: "a" in run.finished, 120.0)

    found = names(course(run, "a"))
    assert found.count("decode") == 2
    assert found.count("prefill") == 2


def test_only_the_latest_courses_of_ended_requests_are_kept() -> None:
    run = Run(split_fog())
    for number in range(MOST_ENDED + 5):
        run.submit(generation(f"r{number}"))
        run.dispatcher.cancel(f"r{number}", run.now)

    kept = run.dispatcher.courses(run.now)

    assert len(kept) == MOST_ENDED
    assert "r0" not in kept
    assert f"r{MOST_ENDED + 4}" in kept


def test_a_request_that_is_queued_over_and_over_is_remembered_in_bounds() -> None:
    request = Request(generation("a"), 0, 0.0)

    for _ in range(MOST_TURNS):
        request.advance(Event.BOUND, 1.0)
        request.advance(Event.ATTEMPT_LOST, 2.0)

    assert len(request.turns) == MOST_TURNS
